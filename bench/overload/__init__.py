"""Ten times the capacity of a slow sink."""
