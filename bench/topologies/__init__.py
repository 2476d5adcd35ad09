"""Topologies of real servers on loopback."""
