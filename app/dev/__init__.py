"""Servers for a developer's machine; no part of the product."""
