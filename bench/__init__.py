"""What proves the promises: load, faults, and an oracle that counts."""
