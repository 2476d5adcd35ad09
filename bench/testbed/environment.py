"""The environment of a run, on loopback: a database, a Redis, and gateways of its own."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

import asyncpg
from redis.asyncio import Redis

from app.dev import embedded, programs
from app.dev.processes import free_port
from bench.testbed import database
from bench.testbed.callbacks import SECRET, VENDORS, WORKSPACES
from bench.testbed.chronicle import Chronicle
from bench.testbed.gateway import Gateway, ports_of
from bench.testbed.process import SERVE, ServerProcess
from bench.testbed.proxy import Proxy
from bench.testbed.threads import enter_in_thread, in_thread
from bench.topologies.pair import Pair, open_pair
from bench.topologies.servers import url_of
from sinks.timescale import schema

# Short, so that faults end sooner; the relations between them are those of the defaults.
COMMIT_TIMEOUT_S = 1.5
CLAIM_LEASE_S = 4.0
DRAIN_PAUSE_S = 0.3
SETTINGS = {
    "HOST": "127.0.0.1",
    **{f"{vendor.upper()}_CALLBACK_SECRET": SECRET for vendor in VENDORS},
    "COMMIT_TIMEOUT_S": str(COMMIT_TIMEOUT_S),
    "CLAIM_LEASE_S": str(CLAIM_LEASE_S),
    "DRAIN_PAUSE_S": str(DRAIN_PAUSE_S),
}
# The defaults of the gateway, for measurements.
DEFAULT_TIMEOUTS = {"COMMIT_TIMEOUT_S": "5", "CLAIM_LEASE_S": "15"}
# COMMIT_TIMEOUT_S must exceed three times this.
_SERVER_SETTINGS = ("ALTER SYSTEM SET deadlock_timeout = '400ms'", "SELECT pg_reload_conf()")


class Environment:
    """Servers, and gateways that reach them through proxies of their own.

    `environ` is the environment of a process that reaches the servers directly. With a `pair`, the
    database is that of the pair, and the PostgreSQL of `servers` is stopped.
    """

    def __init__(
        self,
        servers: embedded.Embedded,
        folder: Path,
        environ: Mapping[str, str],
        pair: Pair | None = None,
    ) -> None:
        self.servers = servers
        self.folder = folder
        self.environ = environ
        self.gateways: list[Gateway] = []
        self.chronicle = Chronicle()
        self._pair = pair

    @property
    def pair(self) -> Pair:
        """The primary and its standby, in an environment with both."""
        assert self._pair is not None, "an environment without a standby"
        return self._pair

    @property
    def database_url(self) -> str:
        """The address of the database: of the present primary."""
        return self.servers.database_url if self._pair is None else url_of(self._pair.primary)

    @asynccontextmanager
    async def serve(
        self, name: str, arguments: Sequence[str], settings: Mapping[str, str], ready: str
    ) -> AsyncIterator[ServerProcess]:
        """Run a server beside the gateways, without proxies, which would cost CPU.

        `settings` add to `environ`; see `ServerProcess` for the other parameters. Raises
        BenchError.
        """
        log = self.folder / f"{name}.log"
        environ = dict(self.environ) | dict(settings)
        server = ServerProcess(free_port(), environ, log, arguments=arguments, ready=ready)
        try:
            await server.start_ready()
            yield server
        finally:
            server.stop()

    async def execute(self, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        await database.execute(self.database_url, *statements)

    def connected(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """Lend a connection to the database."""
        return database.connected(self.database_url)

    def locked(self, table: str) -> AbstractAsyncContextManager[None]:
        """Hold a lock on a table against every other use."""
        # For a superuser: the lock waits in any order of chunks, and is no victim of a deadlock.
        patient = "SET LOCAL deadlock_timeout = '1min'"
        return database.locked(self.database_url, table, patient)

    def redis(self) -> Redis:
        """Return a client of Redis, to be used as a context manager."""
        return Redis.from_url(self.servers.redis_url, socket_timeout=10)

    async def has_chunk(self, moment: datetime) -> bool:
        """Whether a chunk for events of this moment exists; needs TimescaleDB."""
        async with self.connected() as connection:
            found = await connection.fetchval(
                "SELECT EXISTS (SELECT FROM timescaledb_information.chunks "
                "WHERE range_start <= $1 AND $1 < range_end)",
                moment,
            )
        return bool(found)


@asynccontextmanager
async def open_environment(
    *,
    folder: Path | None = None,
    gateways: int = 2,
    arguments: Sequence[str] = SERVE,
    settings: Mapping[str, str] | None = None,
    statements: Sequence[str] = (),
    has_standby: bool = False,
) -> AsyncIterator[Environment]:
    """Start everything, and stop it at the end.

    Data and logs stay in `folder`; without one they are deleted. `statements` are run in the
    migrated database. `arguments` and `settings` are those of each gateway. With `has_standby` the
    database has a synchronous standby. Raises EmbeddedError and BenchError.
    """
    async with AsyncExitStack() as stack:
        folder = run_folder(stack, folder)
        servers = stack.enter_context(embedded.start(folder / "servers"))
        environ = SETTINGS | {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "WORKSPACES_FILE": str(folder / "workspaces.toml"),
            **(settings or {}),
        }
        pair = None
        if has_standby:
            servers.postgres.stop()
            pair = await _start_pair(stack, folder / "pair")
            environ["DATABASE_URL"] = url_of(pair.primary, pair.standby)
        environment = Environment(servers, folder, environ, pair)
        await _prepare(environment, statements)
        for number in range(gateways):
            log = folder / f"gateway-{number}.log"
            environment.gateways.append(await _gateway(stack, environ, log, arguments))
        await asyncio.gather(*(gateway.start_ready() for gateway in environment.gateways))
        yield environment


def run_folder(stack: AsyncExitStack, folder: Path | None) -> Path:
    """Return the folder of a run; a temporary one, without `folder`, is deleted with the stack."""
    if folder is None:
        temporary = tempfile.TemporaryDirectory(prefix="flokit-bench-")
        return Path(stack.enter_context(temporary))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _start_pair(stack: AsyncExitStack, folder: Path) -> Pair:
    """Start a primary and its standby; they end with the stack."""
    # In other threads: it runs a loop of its own, and waits for processes.
    return await enter_in_thread(stack, open_pair(folder, programs.find()))


async def _prepare(environment: Environment, statements: Sequence[str]) -> None:
    await environment.execute(*_SERVER_SETTINGS)
    async with environment.connected() as connection:
        await schema.migrate(connection)
    await environment.execute(*statements)
    (environment.folder / "workspaces.toml").write_text(WORKSPACES)


async def _gateway(
    stack: AsyncExitStack, environ: Mapping[str, str], log: Path, arguments: Sequence[str]
) -> Gateway:
    databases = [await _open(stack, port) for port in ports_of(environ["DATABASE_URL"])]
    [redis] = [await _open(stack, port) for port in ports_of(environ["REDIS_URL"])]
    gateway = Gateway(
        free_port(), environ, log, databases=databases, redis=redis, arguments=arguments
    )
    # In another thread: its last requests pass through the proxies of this thread's loop.
    stack.push_async_callback(in_thread, gateway.stop)
    return gateway


async def _open(stack: AsyncExitStack, port: int) -> Proxy:
    proxy = Proxy(port)
    await proxy.open()
    stack.callback(proxy.close)
    return proxy
