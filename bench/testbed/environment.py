"""Everything that a run needs, on loopback: servers of its own, a database, gateways."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
from redis.asyncio import Redis

from app.dev import embedded
from app.dev.processes import free_port
from bench.testbed.callbacks import SECRET, WORKSPACES
from bench.testbed.gateway import SERVE, Gateway, Process
from bench.testbed.proxy import Proxy
from sinks.timescale import schema

# Short, so that a fault is over sooner; the relations between them are those of the defaults.
COMMIT_TIMEOUT_S = 1.5
CLAIM_LEASE_S = 4.0
DRAIN_PAUSE_S = 0.3
SETTINGS = {
    "HOST": "127.0.0.1",
    "ADJUST_CALLBACK_SECRET": SECRET,
    "COMMIT_TIMEOUT_S": str(COMMIT_TIMEOUT_S),
    "CLAIM_LEASE_S": str(CLAIM_LEASE_S),
    "DRAIN_PAUSE_S": str(DRAIN_PAUSE_S),
}
# A commit must be longer than three times this.
_SERVER_SETTINGS = ("ALTER SYSTEM SET deadlock_timeout = '400ms'", "SELECT pg_reload_conf()")


class Stage:
    """Two servers, and gateways that reach them only through their own wires.

    `environ` is what a process is told that reaches them directly.
    """

    def __init__(
        self, servers: embedded.Embedded, folder: Path, environ: Mapping[str, str]
    ) -> None:
        self.servers = servers
        self.folder = folder
        self.environ = environ
        self.gateways: list[Gateway] = []

    @asynccontextmanager
    async def serve(
        self, name: str, arguments: Sequence[str], settings: Mapping[str, str], ready: str
    ) -> AsyncIterator[Process]:
        """Run a server beside the gateways, without wires, which would cost it and us CPU.

        `settings` add to `environ`; see `Process` for the others. Raises BenchError.
        """
        log = self.folder / f"{name}.log"
        environ = dict(self.environ) | dict(settings)
        process = Process(free_port(), environ, log, arguments=arguments, ready=ready)
        try:
            await process.start()
            yield process
        finally:
            process.end()

    async def execute(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        connection = await self.connect()
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def connect(self) -> asyncpg.Connection:
        """Return a connection that is nobody else's."""
        return await asyncpg.connect(self.servers.database_url)

    @asynccontextmanager
    async def locked_events(self) -> AsyncIterator[None]:
        """Nobody can use the table `events` meanwhile."""
        connection = await self.connect()
        try:
            async with connection.transaction():
                # In whatever order the others have locked its chunks.
                await connection.execute("SET LOCAL deadlock_timeout = '1min'")
                await connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                yield
        finally:
            await connection.close()

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[Any]:
        """Lend a connection to Redis."""
        redis = Redis.from_url(self.servers.redis_url, socket_timeout=10)
        try:
            yield redis
        finally:
            await redis.aclose()

    async def has_chunk(self, moment: datetime) -> bool:
        """Whether there is a chunk for events of this moment; needs TimescaleDB."""
        connection = await self.connect()
        found = await connection.fetchval(
            "SELECT EXISTS (SELECT FROM timescaledb_information.chunks "
            "WHERE range_start <= $1 AND $1 < range_end)",
            moment,
        )
        await connection.close()
        return bool(found)


@asynccontextmanager
async def open_stage(
    *,
    folder: Path | None = None,
    gateways: int = 2,
    arguments: Sequence[str] = SERVE,
    settings: Mapping[str, str] | None = None,
    statements: Sequence[str] = (),
) -> AsyncIterator[Stage]:
    """Start everything, and end it.

    Data and logs are in `folder`, and stay there; without one they are forgotten. `statements` are
    run in the migrated database. `arguments` and `settings` are those of each gateway. Raises
    EmbeddedError and BenchError.
    """
    async with AsyncExitStack() as stack:
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="flokit-bench-")
            folder = Path(stack.enter_context(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        servers = stack.enter_context(embedded.start(folder / "servers"))
        environ = SETTINGS | {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "WORKSPACES_FILE": str(folder / "workspaces.toml"),
            **(settings or {}),
        }
        stage = Stage(servers, folder, environ)
        await stage.execute(*_SERVER_SETTINGS)
        connection = await stage.connect()
        await schema.migrate(connection)
        await connection.close()
        await stage.execute(*statements)
        (folder / "workspaces.toml").write_text(WORKSPACES)
        for number in range(gateways):
            log = folder / f"gateway-{number}.log"
            stage.gateways.append(await _gateway(stack, environ, log, arguments))
        await asyncio.gather(*(gateway.start() for gateway in stage.gateways))
        yield stage


async def _gateway(
    stack: AsyncExitStack, environ: Mapping[str, str], log: Path, arguments: Sequence[str]
) -> Gateway:
    wires = [await _open(stack, environ[name]) for name in ("DATABASE_URL", "REDIS_URL")]
    gateway = Gateway(
        free_port(), environ, log, database=wires[0], redis=wires[1], arguments=arguments
    )
    # Not in this thread: what it still has to say goes through the wires, and these are ours.
    stack.push_async_callback(asyncio.to_thread, gateway.end)
    return gateway


async def _open(stack: AsyncExitStack, url: str) -> Proxy:
    port = urlsplit(url).port
    assert port is not None
    proxy = Proxy(port)
    await proxy.open()
    stack.callback(proxy.close)
    return proxy
