"""Everything that a run needs, on loopback: servers of its own, a database, gateways."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from app import embedded
from app.embedded_process import free_port
from bench.callbacks import SECRET, WORKSPACES
from bench.gateway import SERVE, Gateway
from bench.proxy import Proxy
from sinks import schema

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
    """Two servers, and gateways that reach them only through their own wires."""

    def __init__(self, servers: embedded.Embedded, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.gateways: list[Gateway] = []

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
    EmbeddedError and GatewayError.
    """
    async with AsyncExitStack() as stack:
        if folder is None:
            temporary = tempfile.TemporaryDirectory(prefix="flokit-bench-")
            folder = Path(stack.enter_context(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        servers = stack.enter_context(embedded.start(folder / "servers"))
        stage = Stage(servers, folder)
        await stage.execute(*_SERVER_SETTINGS)
        connection = await stage.connect()
        await schema.migrate(connection)
        await connection.close()
        await stage.execute(*statements)
        (folder / "workspaces.toml").write_text(WORKSPACES)
        environ = SETTINGS | {
            "DATABASE_URL": servers.database_url,
            "REDIS_URL": servers.redis_url,
            "WORKSPACES_FILE": str(folder / "workspaces.toml"),
            **(settings or {}),
        }
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
    stack.callback(gateway.end)
    return gateway


async def _open(stack: AsyncExitStack, url: str) -> Proxy:
    port = urlsplit(url).port
    assert port is not None
    proxy = Proxy(port)
    await proxy.open()
    stack.callback(proxy.close)
    return proxy
