"""Servers, gateways, proxies and callers, for the bench and the tests."""
