"""Quarantine for `replay`: pages of a selection, the removal of rows, and the table `imports`."""

from collections.abc import AsyncIterator, Sequence
from datetime import date, datetime, timedelta
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

import asyncpg
import msgspec

from app.dropped import Dropped
from app.event import Event
from sinks.timescale.drops import Selection, condition_of
from sinks.timescale.quarantine import columns, sizes_of
from sinks.timescale.schema import at_leisure

# With callbacks of 64 KB, the longest that are kept, a page takes 32 MB.
PAGE_ROWS = 500
# There is no index on the time of arrival but a BRIN, which does not know the newest rows: a query
# for keys sorts all later rows, and so fetches the keys of many pages.
KEYS_MAX = 20_000
# Readers have noticed an import without an end after so long.
UNFINISHED_MAX_AGE = timedelta(days=7)
# The sizes that a replay subtracts: other writers have rows of their own.
WRITER = "replay"
# Removals wait for each other: two of them could delete the same rows in different orders. A number
# that no other program locks in the same database.
_REMOVAL_LOCK = 7_205_759_404

_COLUMNS = (
    "received_at, drop_id, ctid, vendor, workspace_id, app_token, reason, subject, method, query, "
    "content_type, body, event"
)
# These rows never move, but a `ctid` is unique in one table, not among its partitions. By the
# bounds TimescaleDB excludes chunks, and the server reads only a part of one.
_BY_KEY = (
    "ctid = ANY($1::tid[]) AND drop_id = ANY($2::int8[]) "
    "AND received_at BETWEEN $3 AND $4 AND ctid BETWEEN $5 AND $6"
)
_PAGE = f"SELECT {_COLUMNS} FROM dropped WHERE {_BY_KEY} ORDER BY received_at, drop_id"  # noqa: S608 - made of constants
_REMOVE = f"DELETE FROM dropped WHERE {_BY_KEY} RETURNING drop_id"  # noqa: S608 - made of constants
# A subject without an account of its own was counted with others, under the empty one.
_SUBTRACT = """
INSERT INTO quarantine_usage AS usage (writer, day, workspace_id, reason, subject, rows, bytes)
SELECT $1::text, day, workspace_id, reason, coalesce(accounts.subject, '') AS account,
    -sum(removed.rows)::int8, -sum(removed.bytes)::int8
FROM unnest($2::date[], $3::text[], $4::text[], $5::text[], $6::int8[], $7::int8[])
    AS removed (day, workspace_id, reason, subject, rows, bytes)
LEFT JOIN (
    SELECT DISTINCT day, workspace_id, reason, subject FROM quarantine_usage
    WHERE day = ANY($2::date[]) AND subject = ANY($5::text[])
) AS accounts USING (day, workspace_id, reason, subject)
GROUP BY day, workspace_id, reason, account
ORDER BY day, workspace_id, reason, account
ON CONFLICT (writer, day, workspace_id, reason, subject)
DO UPDATE SET rows = usage.rows + excluded.rows, bytes = usage.bytes + excluded.bytes
"""
_ROWS = """
SELECT events.event_id
FROM events JOIN unnest($1::timestamptz[], $2::uuid[]) AS sent (occurred_at, event_id)
    USING (occurred_at, event_id)
WHERE events.occurred_at BETWEEN $3 AND $4
"""
_STABLE = "SELECT event_id FROM stable_events WHERE event_id = ANY($1::uuid[])"


class Key(NamedTuple):
    """The place of a row of `dropped`: in the order of arrival, and in its table."""

    received_at: datetime
    drop_id: int
    ctid: tuple[int, int]


class Kept(NamedTuple):
    """A row of `dropped`."""

    key: Key
    dropped: Dropped


class Overview(NamedTuple):
    """The number of rows of a selection, and their first and last arrival."""

    rows: int
    first: datetime
    last: datetime


class Counts(msgspec.Struct):
    """The outcomes of an import so far, as the table `imports` has them."""

    read: int = 0
    written: int = 0
    duplicate: int = 0
    dropped: int = 0


async def read_overview(connection: asyncpg.Connection, selection: Selection) -> Overview | None:
    """Return the extent of a selection; None if it is empty."""
    where, values = condition_of(selection)
    async with at_leisure(connection):
        record = await connection.fetchrow(
            f"SELECT count(*), min(received_at), max(received_at) FROM dropped WHERE {where}",  # noqa: S608 - our own words
            *values,
        )
    return Overview(*record) if record and record[0] else None


async def read_pages(
    connection: asyncpg.Connection, selection: Selection, extent: Overview
) -> AsyncIterator[Sequence[Kept]]:
    """Yield the rows of a selection in the order of arrival, up to the last of `extent`.

    Nothing is locked or held in between, so that `retain` may drop chunks meanwhile.
    """
    where, values = condition_of(selection)
    first, last, after = (f"${len(values) + place}" for place in (1, 2, 3))
    query = (
        f"SELECT received_at, drop_id, ctid FROM dropped WHERE {where} "  # noqa: S608 - our own words
        f"AND received_at BETWEEN {first} AND {last} "
        f"AND (received_at, drop_id) > ({first}, {after}::int8) "
        f"ORDER BY received_at, drop_id LIMIT {KEYS_MAX}"
    )
    place = (extent.first, -1)
    while True:
        async with at_leisure(connection):
            records = await connection.fetch(query, *values, place[0], extent.last, place[1])
        keys = [Key(*record) for record in records]
        for start in range(0, len(keys), PAGE_ROWS):
            if page := await read_page(connection, keys[start : start + PAGE_ROWS]):
                yield page
        if len(keys) < KEYS_MAX:
            return
        place = keys[-1][:2]


async def read_page(connection: asyncpg.Connection, keys: Sequence[Key]) -> Sequence[Kept]:
    """Return the rows with these keys, as far as they are still there, in the order of arrival."""
    async with at_leisure(connection):
        return list(map(_kept, await connection.fetch(_PAGE, *_columns_of(keys))))


async def begin_import(connection: asyncpg.Connection, kind: str) -> UUID:
    """File an import, and return its ID."""
    async with at_leisure(connection):
        import_id: UUID = await connection.fetchval(
            "INSERT INTO imports (kind, started_at) VALUES ($1, clock_timestamp()) "
            "RETURNING import_id",
            kind,
        )
    return import_id


async def read_unfinished(connection: asyncpg.Connection, import_id: UUID) -> Sequence[date]:
    """Return the first and last day of other imports of late that have no end; empty if none.

    They were killed, or are under way.
    """
    async with at_leisure(connection):
        record = await connection.fetchrow(
            "SELECT min(first_day), max(last_day) FROM imports WHERE finished_at IS NULL "
            "AND import_id <> $1 AND started_at > now() - $2::interval",
            import_id, UNFINISHED_MAX_AGE,
        )  # fmt: skip
    return [day for day in record or () if day is not None]


async def announce_days(
    connection: asyncpg.Connection, import_id: UUID, first: date, last: date
) -> None:
    """Extend the days of an import: before the write, so that no reader misses one of them."""
    async with at_leisure(connection):
        await connection.execute(
            "UPDATE imports SET first_day = least(first_day, $2), "
            "last_day = greatest(last_day, $3) WHERE import_id = $1",
            import_id, first, last,
        )  # fmt: skip


async def remove(
    connection: asyncpg.Connection, import_id: UUID, rows: Sequence[Kept], counts: Counts
) -> None:
    """Remove decided rows from quarantine, with their size, and note the counts of the import."""
    async with at_leisure(connection):
        await connection.execute(f"SELECT pg_advisory_xact_lock({_REMOVAL_LOCK})")
        if rows:
            records = await connection.fetch(_REMOVE, *_columns_of([row.key for row in rows]))
            # Another replay, or `retain`, may have removed and subtracted some of them.
            removed: set[int] = {record[0] for record in records}
            await _subtract(connection, [r.dropped for r in rows if r.key.drop_id in removed])
        await connection.execute(
            "UPDATE imports SET read = $2, written = $3, duplicate = $4, dropped = $5 "
            "WHERE import_id = $1",
            import_id, *msgspec.structs.astuple(counts),
        )  # fmt: skip


async def finish_import(
    connection: asyncpg.Connection, import_id: UUID, days: Sequence[date]
) -> None:
    """Note the end of an import, and the days that it has touched in place of the announced."""
    extent = (min(days), max(days)) if days else (None, None)
    async with at_leisure(connection):
        await connection.execute(
            "UPDATE imports SET finished_at = clock_timestamp(), first_day = $2, last_day = $3 "
            "WHERE import_id = $1",
            import_id, *extent,
        )  # fmt: skip


async def find_events(connection: asyncpg.Connection, events: Sequence[Event]) -> set[bytes]:
    """Return the IDs of the events that are in the table, without a write."""
    stable = [UUID(bytes=event.event_id) for event in events if event.has_stable_id]
    others = sorted((event.occurred_at, event.event_id) for event in events)
    found: set[bytes] = set()
    async with connection.transaction(readonly=True):
        if stable:
            found |= {record[0].bytes for record in await connection.fetch(_STABLE, stable)}
        # A day is a chunk: one query for all would lock the chunks of the days in between.
        for _, day in groupby(others, key=lambda pair: pair[0].date()):
            times, ids = zip(*day, strict=True)
            uuids = [UUID(bytes=id_) for id_ in ids]
            records = await connection.fetch(_ROWS, times, uuids, times[0], times[-1])
            found |= {record[0].bytes for record in records}
    return found


def _kept(record: asyncpg.Record) -> Kept:
    fields: dict[str, object] = dict(record)
    # Its size was counted under its subject, or with others: see `_SUBTRACT`.
    fields["account"] = fields["subject"]
    return Kept(Key(*record[:3]), msgspec.convert(fields, Dropped))


def _columns_of(keys: Sequence[Key]) -> tuple[object, ...]:
    times, drop_ids, ctids = (list(column) for column in zip(*keys, strict=True))
    return ctids, drop_ids, min(times), max(times), min(ctids), max(ctids)


async def _subtract(connection: asyncpg.Connection, drops: Sequence[Dropped]) -> None:
    if drops:
        await connection.execute(_SUBTRACT, WRITER, *columns(sizes_of(drops)))
