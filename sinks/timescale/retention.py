"""The retention: older rows are deleted, in portions that the server can take."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg

from sinks.timescale.schema import CHUNK_INTERVAL, at_leisure, is_hypertable

DELETE_ROWS = 50_000
# Each is locked with its indexes until the end of the transaction. With PostgreSQL's defaults the
# server has room for 64 locks of each of 100 connections.
DROP_CHUNKS = 100


async def retain(connection: asyncpg.Connection, retention_d: int) -> AsyncIterator[str]:
    """Delete events that occurred more than `retention_d` days ago; yields lines of progress.

    A hypertable loses whole chunks; an ordinary table loses rows.
    """
    # The earlier of two clocks: a clock that runs ahead must not cost rows.
    server_now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    cutoff = min(datetime.now(UTC), server_now) - timedelta(days=retention_d)
    if await is_hypertable(connection, "events"):
        async for line in _drop_chunks(connection, cutoff):
            yield line
        # A chunk that has not ended keeps its rows, so their stable IDs are kept too.
        cutoff -= CHUNK_INTERVAL
    else:
        async for line in _delete(connection, "events", cutoff):
            yield line
    async for line in _delete(connection, "stable_events", cutoff):
        yield line


async def _drop_chunks(connection: asyncpg.Connection, cutoff: datetime) -> AsyncIterator[str]:
    dropped = 0
    while True:
        async with at_leisure(connection):
            ended: datetime | None = await connection.fetchval(
                "SELECT max(range_end) FROM ("
                "SELECT range_end FROM timescaledb_information.chunks "
                "WHERE hypertable_name = 'events' AND hypertable_schema = current_schema() "
                "AND range_end <= $1 ORDER BY range_end LIMIT $2) AS oldest",
                cutoff,
                DROP_CHUNKS,
            )
            if ended is None:
                break
            chunks = await connection.fetch("SELECT drop_chunks('events', $1::timestamptz)", ended)
        dropped += len(chunks)
        yield f"events: {dropped} chunks dropped so far"
    yield f"events: {dropped} chunks dropped that ended before {cutoff:%Y-%m-%d %H:%M} UTC"


async def _delete(
    connection: asyncpg.Connection, table: str, cutoff: datetime
) -> AsyncIterator[str]:
    deleted = 0
    while True:
        async with at_leisure(connection):
            # The time counts twice: a `ctid` is unique in one table, not among its partitions.
            status = await connection.execute(
                f"DELETE FROM {table} WHERE occurred_at < $1 "  # noqa: S608 - made of constants
                f"AND ctid = ANY(ARRAY("
                f"SELECT ctid FROM {table} WHERE occurred_at < $1 LIMIT {DELETE_ROWS}))",
                cutoff,
            )
        rows = int(status.split()[-1])
        deleted += rows
        if rows < DELETE_ROWS:
            break
        yield f"{table}: {deleted} rows deleted so far"
    yield f"{table}: {deleted} rows deleted that occurred before {cutoff:%Y-%m-%d %H:%M} UTC"
