"""Small measurements of single parts of the gateway."""
