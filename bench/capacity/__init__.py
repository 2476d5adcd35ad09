"""The needs of some rates of callbacks: pods, databases, Redis, disk and network."""
