"""Ten times the load that a slow sink takes."""
