"""Gateways that break the contract on purpose: the oracle must find each of them."""
