"""Histories of two gateways in virtual time, each made and repeated by a seed."""
