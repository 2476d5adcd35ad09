"""One history: a seed becomes callbacks, faults and interleavings, and a verdict on all answers."""

import asyncio
import logging
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import NamedTuple
from unittest.mock import patch

import asyncpg

from app.claims import discovery
from app.claims import redis as redis_claims
from tests.simulation import events
from tests.simulation.cluster import Cluster
from tests.simulation.connection import connect
from tests.simulation.faults import Faults
from tests.simulation.gateways import SimulatedGateway
from tests.simulation.loop import Stuck
from tests.simulation.redis_server import Redis
from tests.simulation.vendor import Vendor
from tests.simulation.world import Note, World

GATEWAYS = ("A", "B")
# redis-py reads its own version from the disk each time.
_read_address = cache(discovery.read_address)


class Result(NamedTuple):
    """The end of a history."""

    seed: int
    violations: Sequence[str]
    trace: Sequence[Note]
    digest: str
    steps: int
    simulated_s: float
    answers: int

    @property
    def is_sound(self) -> bool:
        """Whether no promise was broken."""
        return not self.violations


def run(seed: int) -> Result:
    """Run the history of a seed."""
    world = World(seed)
    with _pinned(world):
        try:
            vendor = _History(world).run()
            return Result(
                seed, tuple(world.violations), tuple(world.trace), world.digest(),
                world.loop.steps, world.loop.time(), vendor.answers,
            )  # fmt: skip
        finally:
            world.loop.end(world.processes)


@contextmanager
def _pinned(world: World) -> Iterator[None]:
    """Take all chance from the seed, and all connections from the models."""
    random = world.random.__class__(world.random.random())
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            patch.object(asyncpg, "connect", partial(connect, world)),
            patch.object(redis_claims, "read_address", _read_address),
            patch.object(os, "urandom", random.randbytes),
            patch.object(secrets, "token_bytes", random.randbytes),
        ):
            yield
    finally:
        logging.disable(disabled)


class _History:
    def __init__(self, world: World) -> None:
        random = world.random
        self._world = world
        self._limits = {
            "batch_max": random.choice((1, 4, 100)),
            "buffer_max": random.choice((3, 100, 100)),
        }
        self._horizon_s = random.uniform(3.0, 9.0)
        self._number = 0
        self._cluster = Cluster(world)
        self._redis = Redis(world)
        self._gateways = [self._start(place) for place in range(len(GATEWAYS))]
        self._faults = Faults(world, self._cluster, self._redis, self._gateways, self._start)
        drawn = events.draw(random, random.randint(4, 9))
        self._vendor = Vendor(world, self._cluster, self._gateways, drawn)

    def run(self) -> Vendor:
        """Run until every callback has its final answer, and judge."""
        try:
            self._world.loop.run_until_complete(self._run())
        except Stuck:
            self._world.broken("stuck: nothing is ready, and no timer runs")
        return self._vendor

    async def _run(self) -> None:
        random = self._world.random
        self._vendor.start(self._horizon_s)
        for _ in range(random.randint(0, 10)):
            self._world.later(random.uniform(0.0, self._horizon_s), self._faults.inject)
        await asyncio.sleep(self._horizon_s)
        self._faults.mend()
        await self._vendor.wait()
        self._vendor.judge()

    def _start(self, place: int) -> SimulatedGateway:
        self._number += 1
        name = f"{GATEWAYS[place]}{self._number}"
        self._world.note(name, "starts")
        return SimulatedGateway(self._world, self._redis, name, **self._limits)
