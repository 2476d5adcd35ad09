"""Tests without a process: seconds."""
