"""The model of a commit without its standby beside a real PostgreSQL: the same results."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest

from app.dev.processes import Server
from bench.testbed.process import PATIENCE_S, POLL_S
from bench.topologies.maker import Maker
from bench.topologies.servers import PLAIN, superuser_connection, url_of
from sinks.timescale.session import Session
from tests import events
from tests.simulation.connection import SimulatedSession
from tests.simulation.operations import in_the_model, perform, real_sessions

NO_STANDBY = ("ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
_IS_WAITING = "SELECT wait_event = 'SyncRep' FROM pg_stat_activity WHERE pid = $1"

On = Callable[[Session], Awaitable[None]]


async def cut_short(sessions: Sequence[Session], until_waiting: On, cancel: On) -> list[object]:
    """The results of a write and of a search whose commits wait until they are cancelled."""
    first, second = sessions
    batch, other = events.events("a"), events.events("b")
    write = asyncio.create_task(perform(first, "copy", batch))
    await until_waiting(first)
    # Neither visible nor free.
    found = [await perform(second, kind, batch) for kind in ("find", "insert")]
    await cancel(first)
    found += [await write, first.is_wait_cancelled]
    # Visible, and not replicated: the search waits too.
    search = asyncio.create_task(perform(second, "find", batch))
    await until_waiting(second)
    await cancel(second)
    found += [await search, second.is_wait_cancelled]
    # Neither a search in vain nor a rollback waits.
    second.is_wait_cancelled = False
    found.append(await perform(second, "find", other))
    found += [await perform(second, kind, other) for kind in ("BEGIN", "insert", "ROLLBACK")]
    return [*found, second.is_wait_cancelled]


async def wait_in_the_model(_: Session) -> None:
    """Return long after the model has begun to wait."""
    await asyncio.sleep(1)


async def cancel_in_the_model(session: Session) -> None:
    """Cancel the wait of a session for the standby."""
    assert isinstance(session, SimulatedSession)
    session.backend.cancel()


@pytest.fixture
def modelled() -> list[object]:
    """The results in the model."""
    return in_the_model(
        lambda sessions: cut_short(sessions, wait_in_the_model, cancel_in_the_model),
        is_synchronous=True,
    )


@pytest.fixture(scope="module")
def server(maker: Maker) -> Server:
    """A server whose commits wait for a standby that does not exist."""
    server = maker.primary("alone")

    async def await_standby() -> None:
        async with superuser_connection(server) as connection:
            for statement in NO_STANDBY:
                await connection.execute(statement)
            while await connection.fetchval("SHOW synchronous_standby_names") != "nobody":
                await asyncio.sleep(POLL_S)

    asyncio.run(await_standby())
    return server


async def test_commit_that_is_cut_short_is_as_in_postgresql(
    server: Server, modelled: list[object]
) -> None:
    """A commit without its standby is invisible; cancelled, it is visible and warns."""

    async def until_waiting(session: Session) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await observer.fetchval(_IS_WAITING, session.get_server_pid()):
                await asyncio.sleep(POLL_S)

    async def cancel(session: Session) -> None:
        await observer.execute(f"SELECT pg_cancel_backend({session.get_server_pid()})")

    url = url_of(server, database=PLAIN)
    async with superuser_connection(server, PLAIN) as observer, real_sessions(url) as sessions:
        assert await cut_short(sessions, until_waiting, cancel) == modelled
    assert modelled[1:4] == [("55P03", None, False), "COPY 1", True]
