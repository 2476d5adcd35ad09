"""Gateways of a simulation: the parts of the product, on the modelled servers."""

import asyncio
import tempfile
from functools import cache
from pathlib import Path

import adapters
from app.claims.connection import Endpoint
from app.claims.redis import RedisClaims
from app.errors import GatewayError
from app.gateway import Gateway
from app.ingest import Request
from app.settings import Settings, VendorAccess
from app.vendor import Vendors
from app.workspaces import Workspaces
from sinks.timescale.sink import TimescaleSink
from tests.simulation.cluster import DATABASE_URL
from tests.simulation.events import SECRET, WORKSPACES
from tests.simulation.loop import Process
from tests.simulation.redis_server import Redis, RedisConnection
from tests.simulation.world import World

COMMIT_TIMEOUT_S, LEASE_S = 1.0, 3.0
_KINDS = {
    b'{"received":1,"written":1,"duplicate":0,"dropped":0}': "written",
    b'{"received":1,"written":0,"duplicate":1,"dropped":0}': "duplicate",
    b'{"received":1,"written":0,"duplicate":0,"dropped":1}': "dropped",
}


@cache
def _parts() -> tuple[Vendors, Workspaces]:
    """Return the vendors and the workspaces: they are the same in every history."""
    vendors = adapters.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "workspaces.toml"
        path.write_text(WORKSPACES)
        return vendors, Workspaces(path, vendors)


class SimulatedGateway:
    """One gateway, from its start to its end."""

    def __init__(
        self, world: World, redis: Redis, name: str, *, batch_max: int, buffer_max: int
    ) -> None:
        self.process = Process(name)
        world.processes.append(self.process)
        self._world = world
        self._redis = redis
        self._batch_max, self._buffer_max = batch_max, buffer_max
        self._gateway: Gateway = self.process.context.run(self._make)
        self.run(self._gateway._ping_sink())

    @property
    def name(self) -> str:
        """The name of its process."""
        return self.process.name

    def run(self, work: "asyncio._CoroutineLike[object]") -> "asyncio.Task[object]":
        """Run a coroutine in the process of the gateway."""
        return self._world.loop.create_task(work, context=self.process.context)

    async def answer(self, query: bytes) -> str:
        """Return the kind of the answer to a callback: of a receipt, or the status."""
        request = Request(vendor="adjust", query=query, address="127.0.0.1", headers={})
        try:
            return _KINDS[await self._gateway.handle(request)]
        except GatewayError as error:
            return str(error.status)

    async def close(self) -> None:
        """Commit the accepted events, and close the parts."""
        await self._gateway.close()

    def _make(self) -> Gateway:
        settings = Settings(
            database_url=DATABASE_URL,
            redis_url="redis://simulated/0",
            commit_timeout_s=COMMIT_TIMEOUT_S,
            claim_lease_s=LEASE_S,
            batch_max_events=self._batch_max,
            buffer_max_events=self._buffer_max,
            quarantine_d=0,
            vendors={"adjust": VendorAccess((SECRET,))},
        )
        sink = TimescaleSink(
            settings.database_url,
            commit_timeout_s=settings.commit_timeout_s,
            now=self._world.wall_s,
        )
        claims = RedisClaims(
            settings.redis_url,
            generation=lambda: sink.generation,
            lease_s=settings.claim_lease_s,
            seen_window_d=settings.seen_window_d,
            connect=self._connect,
        )
        vendors, workspaces = _parts()
        return Gateway(
            settings, vendors=vendors, workspaces=workspaces, claims=claims, sink=sink,
            quarantine=None, now=self._world.now,
        )  # fmt: skip

    def _connect(self, endpoint: Endpoint) -> RedisConnection:
        assert endpoint["host"] == "simulated"
        return RedisConnection(self._redis)
