"""Load, faults and measurements of the gateway, by processes on this machine."""
