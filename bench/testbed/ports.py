"""Ports of servers that tests start: a test's own until the run has used up all of them."""

import itertools
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress

# Below the ports that the product picks for its own servers, and those of outgoing connections.
FIRST, LAST = 10_000, 15_000
BUS = 10_000  # the distance from a Redis node's port to its port for the cluster bus


def _ports() -> Iterator[int]:
    """Go through the ports of one worker of `pytest --numprocesses`, again and again.

    A server binds its port long after the choice, and leaves it while it is restarted. A random
    choice would meet the port of another worker's server then.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = range(FIRST + worker, LAST, workers)
    # Another run on this machine begins elsewhere.
    yield from itertools.islice(itertools.cycle(own), secrets.randbelow(len(own)), None)


_next_ports = _ports()


def free_port(*more: int) -> int:
    """Return a port on which no process listens; nor on those at the distances of `more`."""
    while True:
        port = next(_next_ports)
        with suppress(OSError):
            for distance in (0, *more):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + distance))
            return port
