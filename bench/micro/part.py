"""A measured part of the gateway."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple

from bench.testbed.environment import Environment

# Seconds for a number of runs.
Run = Callable[[int], Awaitable[float]]
Prepare = Callable[[Environment | None], AbstractAsyncContextManager[Run]]


class Part(NamedTuple):
    """A part of the gateway; one run handles `events` events."""

    name: str
    text: str
    prepare: Prepare
    events: int = 1
    needs_servers: bool = False
