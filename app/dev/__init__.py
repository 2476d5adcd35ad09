"""Servers for a developer's machine, the tests and the bench; no part of the product."""
