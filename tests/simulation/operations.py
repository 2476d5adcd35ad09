"""Operations of two sessions, to be performed on the model of the database and on a real one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from unittest.mock import patch
from uuid import UUID

import asyncpg
from asyncpg.exceptions import PostgresError

from app.event import Event
from sinks.timescale import search, statements
from sinks.timescale.encoding import as_arrays, encode_rows
from sinks.timescale.errors import classify
from sinks.timescale.session import Session, open_session, role_settings
from tests.simulation.connection import connect
from tests.simulation.database import Data, Server
from tests.simulation.loop import Process
from tests.simulation.world import World

SETTINGS = {"application_name": "flokit-gateway", "lock_timeout": "20", **role_settings(30)}
CONNECT_TIMEOUT_S = 5.0
_URL = "postgresql://db/events"


async def perform(session: Session, kind: str, batch: Sequence[Event]) -> object:
    """The result of one operation: the rows, the status or the SQLSTATE, and the row at fault."""
    ids = [UUID(bytes=event.event_id) for event in batch]
    try:
        match kind:
            case "copy":
                return await session.copy(statements._COPY, encode_rows(batch))
            case "insert":
                records = await session.fetch(statements._INSERT, *as_arrays(batch))
                return sorted(record[0] for record in records)
            case "stable":
                times = [event.occurred_at for event in batch]
                records = await session.fetch(statements._ENTER_STABLE, ids, times)
                return sorted(record[0] for record in records)
            case "find":
                return [
                    sorted((await search.find_rows(session, batch)).items()),
                    sorted(await search.find_stable(session, batch)),
                ]
            case _:
                return await session.execute(kind)
    except PostgresError as error:
        return error.sqlstate, classify(error).row, session.is_in_transaction()


def in_the_model(
    work: Callable[[Sequence[Session]], Awaitable[list[object]]],
    *,
    is_synchronous: bool = False,
) -> list[object]:
    """The results of work on two sessions with the modelled server.

    `is_synchronous` is whether its commits wait for a standby, which is not there.
    """
    world = World(1)
    server = Server(world, Data(), deadlock_timeout_s=1.0)
    server.is_synchronous = is_synchronous
    world.hosts["db"] = server
    process = Process("test")

    async def both() -> list[object]:
        opened = [await open_session(_URL, SETTINGS, CONNECT_TIMEOUT_S) for _ in range(2)]
        return await work(opened)

    task = world.loop.create_task(both(), context=process.context)
    with patch.object(asyncpg, "connect", partial(connect, world)):
        found = world.loop.run_until_complete(task)
        world.loop.end([process])
    return found


@asynccontextmanager
async def real_sessions(database_url: str) -> AsyncIterator[list[Session]]:
    """Two sessions with the real server."""
    opened = [await open_session(database_url, SETTINGS, CONNECT_TIMEOUT_S) for _ in range(2)]
    try:
        yield opened
    finally:
        for session in opened:
            await session.close()
