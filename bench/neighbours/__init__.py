"""Small callbacks beside large disturbances."""
