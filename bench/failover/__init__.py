"""Failovers of a database under Patroni, under load."""
