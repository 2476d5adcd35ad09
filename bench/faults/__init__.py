"""Faults under load, and an oracle that counts."""
