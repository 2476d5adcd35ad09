"""PostgreSQL servers on loopback: their addresses, questions to them, and waits for them."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from app.dev.processes import Server
from bench.testbed.process import PATIENCE_S, POLL_S

PASSWORD = "the-servers-own"  # noqa: S105 - of servers that live for a test
OWNER, REPLICATOR = "flokit", "replicator"
# The databases of every server: `events` is a hypertable in one, an ordinary table in the other.
HYPERTABLE, PLAIN = "flokit", "plain"
CONNECT_TIMEOUT_S = 5.0

# The statements that make a server commit without a standby.
ALONE = ("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
WAITING = """
SELECT pid FROM pg_stat_activity
WHERE wait_event = 'SyncRep' AND application_name = 'flokit-gateway'
"""


def url_of(*servers: Server, database: str = HYPERTABLE, user: str = OWNER, words: str = "") -> str:
    """The address of a database on any of these servers; `words` are its query."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://{user}:{PASSWORD}@{hosts}/{database}{words}"


@asynccontextmanager
async def asking(server: Server, database: str = HYPERTABLE) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection to a server, with all rights, that waits for no standby."""
    connection = await asyncpg.connect(
        url_of(server, database=database),
        timeout=CONNECT_TIMEOUT_S,
        server_settings={"synchronous_commit": "local", "application_name": "asking"},
    )
    try:
        yield connection
    finally:
        connection.terminate()


async def ask(server: Server, question: str, *words: Any, database: str = HYPERTABLE) -> Any:
    """Return the first value of a server's answer."""
    async with asking(server, database) as connection:
        return await connection.fetchval(question, *words)


async def tell(server: Server, *statements: str, database: str = HYPERTABLE) -> None:
    """Run statements on a server, each in a transaction of its own."""
    async with asking(server, database) as connection:
        for statement in statements:
            await connection.execute(statement)


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of an awaited condition when it holds; servers may be away meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                if found := await condition():
                    return found
            await asyncio.sleep(POLL_S)


async def until_primary(server: Server) -> None:
    """Return when a server takes writes."""
    await until(lambda: ask(server, "SELECT NOT pg_is_in_recovery()"))


async def until_waiting(server: Server) -> Sequence[int]:
    """Return the processes of gateways with commits that wait for a standby, once there are any."""
    async with asking(server) as connection, asyncio.timeout(PATIENCE_S):
        while not (found := await connection.fetch(WAITING)):  # noqa: ASYNC110 - polls a view
            await asyncio.sleep(POLL_S)
    return [record["pid"] for record in found]
