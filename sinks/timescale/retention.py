"""The retention: old rows are deleted, in portions that the server can take."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg

from sinks.timescale.schema import CHUNK_INTERVAL, at_leisure, is_hypertable

DELETE_ROWS = 50_000
# Each is locked with its indexes until the end of the transaction. With PostgreSQL's defaults the
# server has room for 64 locks of each of 100 connections.
DROP_CHUNKS = 100


# The sizes of one account, from all writers, become one row of no writer. Writers of drops lock the
# rows in the same order.
_COMPACT = """
WITH past AS (
    SELECT writer, day, workspace_id, reason, subject FROM quarantine_usage
    WHERE day < $1 AND writer <> '' ORDER BY writer, day, workspace_id, reason, subject FOR UPDATE
), taken AS (
    DELETE FROM quarantine_usage AS usage USING past
    WHERE (usage.writer, usage.day, usage.workspace_id, usage.reason, usage.subject)
        = (past.writer, past.day, past.workspace_id, past.reason, past.subject)
    RETURNING usage.*
)
INSERT INTO quarantine_usage AS usage (writer, day, workspace_id, reason, subject, rows, bytes)
SELECT '', day, workspace_id, reason, subject, sum(rows), sum(bytes) FROM taken
GROUP BY day, workspace_id, reason, subject ORDER BY day, workspace_id, reason, subject
ON CONFLICT (writer, day, workspace_id, reason, subject)
DO UPDATE SET rows = usage.rows + excluded.rows, bytes = usage.bytes + excluded.bytes
"""


async def retain(connection: asyncpg.Connection, retention_d: int) -> AsyncIterator[str]:
    """Delete events that occurred more than `retention_d` days ago; yields lines of progress.

    A hypertable loses whole chunks; an ordinary table loses rows.
    """
    cutoff = await _now(connection) - timedelta(days=retention_d)
    async for line in _drop_chunks_or_rows(connection, "events", "occurred_at", cutoff):
        yield line
    if await is_hypertable(connection, "events"):
        # A chunk that has not ended keeps its rows, so their stable IDs are kept too.
        cutoff -= CHUNK_INTERVAL
    async for line in _delete(connection, "stable_events", "occurred_at", cutoff):
        yield line


async def retain_quarantine(
    connection: asyncpg.Connection, quarantine_d: int
) -> AsyncIterator[str]:
    """Delete drops and rejected requests that arrived more than `quarantine_d` days ago.

    Whole days go, in UTC, since the sizes are counted by day. Yields lines of progress.
    """
    today = (await _now(connection)).replace(hour=0, minute=0, second=0, microsecond=0)
    cutoff = today - timedelta(days=quarantine_d)
    async for line in _drop_chunks_or_rows(connection, "dropped", "received_at", cutoff):
        yield line
    # Later than the rows: a run that is cut short leaves the counted size too large until the next
    # run, and never too small.
    async with at_leisure(connection):
        await connection.execute("DELETE FROM quarantine_usage WHERE day < $1", cutoff.date())
        await connection.execute(_COMPACT, today.date())
    async for line in _delete(connection, "rejected", "received_at", cutoff):
        yield line


async def _now(connection: asyncpg.Connection) -> datetime:
    """Return the earlier of two clocks: a clock that runs ahead must not cost rows."""
    server_now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return min(datetime.now(UTC), server_now)


async def _drop_chunks_or_rows(
    connection: asyncpg.Connection, table: str, column: str, cutoff: datetime
) -> AsyncIterator[str]:
    if await is_hypertable(connection, table):
        async for line in _drop_chunks(connection, table, cutoff):
            yield line
    else:
        async for line in _delete(connection, table, column, cutoff):
            yield line


async def _drop_chunks(
    connection: asyncpg.Connection, table: str, cutoff: datetime
) -> AsyncIterator[str]:
    dropped = 0
    while True:
        async with at_leisure(connection):
            ended: datetime | None = await connection.fetchval(
                "SELECT max(range_end) FROM ("
                "SELECT range_end FROM timescaledb_information.chunks "
                "WHERE hypertable_name = $1 AND hypertable_schema = current_schema() "
                "AND range_end <= $2 ORDER BY range_end LIMIT $3) AS oldest",
                table,
                cutoff,
                DROP_CHUNKS,
            )
            if ended is None:
                break
            chunks = await connection.fetch(
                "SELECT drop_chunks($1::text::regclass, $2::timestamptz)", table, ended
            )
        dropped += len(chunks)
        yield f"{table}: {dropped} chunks dropped so far"
    yield f"{table}: {dropped} chunks dropped that ended before {cutoff:%Y-%m-%d %H:%M} UTC"


async def _delete(
    connection: asyncpg.Connection, table: str, column: str, cutoff: datetime
) -> AsyncIterator[str]:
    deleted = 0
    while True:
        async with at_leisure(connection):
            # The time counts twice: a `ctid` is unique in one table, not among its partitions.
            status = await connection.execute(
                f"DELETE FROM {table} WHERE {column} < $1 "  # noqa: S608 - made of constants
                f"AND ctid = ANY(ARRAY("
                f"SELECT ctid FROM {table} WHERE {column} < $1 LIMIT {DELETE_ROWS}))",
                cutoff,
            )
        rows = int(status.split()[-1])
        deleted += rows
        if rows < DELETE_ROWS:
            break
        yield f"{table}: {deleted} rows deleted so far"
    yield f"{table}: {deleted} rows deleted from before {cutoff:%Y-%m-%d %H:%M} UTC"
