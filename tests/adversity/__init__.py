"""Faults, hostile callers, failovers."""
