"""The needs of some rates of callbacks: pods, cells, Redis, disk and network."""
