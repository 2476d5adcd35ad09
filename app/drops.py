"""Drops on their way into quarantine: what has a place there is kept before it is answered."""
