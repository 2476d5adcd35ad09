"""The reader of the load of faults reads every row that appears in time, and misses late ones."""

import asyncio
from datetime import timedelta
from functools import partial

import asyncpg

from bench.faults.reader import CREATE, LOOK_BACK, Reader, following
from bench.testbed.database import connected
from bench.testbed.process import PATIENCE_S
from sinks.timescale.sink import TimescaleSink
from tests.events import OCCURRED_AT, event


async def test_reader_misses_rows_that_appear_too_late(
    connection: asyncpg.Connection, sink: TimescaleSink, database_url: str
) -> None:
    """A row 89 seconds behind the newest one is late, a row 91 seconds behind it is missed."""
    await connection.execute(CREATE)
    reader = Reader(partial(connected, database_url), LOOK_BACK)
    for name, behind_s in (("newest", 0), ("late", 89), ("missed", 91)):
        received_at = OCCURRED_AT - timedelta(seconds=behind_s)
        await sink.write([event(name, received_at=received_at)])
        await reader.read(connection)
    reading = await reader.finish()
    assert (reading.rows, reading.late, reading.behind_s, reading.missed) == (2, 1, 89, 1)


async def test_reader_goes_on_after_its_connection_is_lost(
    connection: asyncpg.Connection, sink: TimescaleSink, database_url: str
) -> None:
    """After the end of its connection the reader reads over another one."""
    ended = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
        "WHERE datname = current_database() AND query LIKE '%INSERT INTO rows_read%' "
        "AND pid <> pg_backend_pid()"
    )
    async with following(partial(connected, database_url)) as reader, asyncio.timeout(PATIENCE_S):
        while not await connection.fetchval(ended):
            await asyncio.sleep(0.01)
        await sink.write([event("a")])
        while not await connection.fetchval("SELECT count(*) FROM rows_read"):
            await asyncio.sleep(0.01)
    reading = await reader.finish()
    assert (reading.rows, reading.missed) == (1, 0)
