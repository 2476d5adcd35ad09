"""PostgreSQL servers on loopback: their addresses, statements on them, and waits for them."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, TypeVar

import asyncpg

from bench.testbed.process import PATIENCE_S
from bench.testbed.waits import until_true

PASSWORD = "the-servers-own"  # noqa: S105 - of servers that live for a run
OWNER, REPLICATOR = "flokit", "replicator"
# The databases of a server: `events` is a hypertable in one, an ordinary table in the other.
HYPERTABLE, PLAIN = "flokit", "plain"
# A busy machine may take long to start the process of a connection.
CONNECT_TIMEOUT_S = 30.0
# The errors of a server that is away.
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

# The statements that make a server commit without a standby.
ALONE = ("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
WAITING = """
SELECT pid FROM pg_stat_activity
WHERE wait_event = 'SyncRep' AND application_name = 'flokit-gateway'
"""
_Found = TypeVar("_Found")


class Listening(Protocol):
    """A server, or a proxy in front of servers."""

    @property
    def port(self) -> int:
        """Its port on this machine."""


def url_at(*ports: int, database: str = HYPERTABLE, user: str = OWNER, words: str = "") -> str:
    """The address of a database on any of these ports, in this order; `words` are its query."""
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
    return f"postgresql://{user}:{PASSWORD}@{hosts}/{database}{words}"


def url_of(*servers: Listening, database: str = HYPERTABLE, user: str = OWNER) -> str:
    """The address of a database on any of these servers."""
    return url_at(*(server.port for server in servers), database=database, user=user)


@asynccontextmanager
async def superuser_connection(
    server: Listening, database: str = HYPERTABLE, *, user: str = OWNER
) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection to a server with all rights; no commit of it waits for a standby."""
    connection = await asyncpg.connect(
        url_of(server, database=database, user=user),
        timeout=CONNECT_TIMEOUT_S,
        server_settings={"synchronous_commit": "local", "application_name": "superuser"},
    )
    try:
        yield connection
    finally:
        connection.terminate()


async def fetch_value(
    server: Listening, query: str, *words: Any, database: str = HYPERTABLE
) -> Any:
    """Return the first value of a query's result."""
    async with superuser_connection(server, database) as connection:
        return await connection.fetchval(query, *words)


async def execute(server: Listening, *statements: str, database: str = HYPERTABLE) -> None:
    """Run statements on a server, each in a transaction of its own."""
    async with superuser_connection(server, database) as connection:
        for statement in statements:
            await connection.execute(statement)


async def until(
    condition: Callable[[], Awaitable[_Found | None]], patience_s: float = PATIENCE_S
) -> _Found:
    """Return the result of an awaited condition when it holds; servers may be away meanwhile.

    Raises TimeoutError.
    """

    async def found() -> _Found | None:
        with suppress(*AWAY):
            return await condition()
        return None

    return await until_true(found, patience_s)


async def until_primary(server: Listening) -> None:
    """Return when a server takes writes."""
    await until(lambda: fetch_value(server, "SELECT NOT pg_is_in_recovery()"))


async def until_waiting(server: Listening) -> Sequence[int]:
    """Return the processes of gateways with commits that wait for a standby, once there are any."""
    async with superuser_connection(server) as connection:
        found = await until(lambda: connection.fetch(WAITING))
    return [record["pid"] for record in found]
