"""New rows of `events`, `dropped` and `rejected` as they become visible, for `tail`.

A row becomes visible after its `received_at`, and commits cross: a reader that goes on after the
last row misses some for good. So each read looks back, and rows that were returned are remembered.
"""

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

import asyncpg
import msgspec

from app.event import EPOCH
from sinks.timescale.schema import is_hypertable

# A row is visible within 90 s of its arrival, on a clock within 5 minutes of the server's.
LOOK_BACK = timedelta(seconds=390)
OVERLAP = timedelta(seconds=2)
# Most callbacks are about the last hours.
RECENT = timedelta(hours=26)
# A read of all chunks locks each of them, with its indexes.
CHUNKS_MAX = 100
# More rows in a short read are sampled.
SHORT_MAX = 500
LONG_MAX = 5_000
COUNTED_MAX = 100_000
# A long read may take this part of the time; but it is not put off for longer than the pause.
LONG_SHARE = 0.05
LONG_PAUSE_MAX_S = 10.0

_OLDEST_CHUNK = f"""
SELECT range_start FROM timescaledb_information.chunks
WHERE hypertable_name = 'events' AND hypertable_schema = current_schema()
ORDER BY range_start DESC OFFSET {CHUNKS_MAX - 1} LIMIT 1
"""  # noqa: S608 - made of constants
# The inner query sorts rows, the outer one takes the few that are left apart.
_WRITTEN = """
SELECT event_id::text AS key, received_at, vendor, app_token,
    coalesce(properties ->> 'event_token', properties ->> 'activity_kind', '') AS sent,
    event_type, occurred_at, workspace_id, user_id, adid, idfa, gps_adid,
    properties ->> 'revenue' AS revenue, properties ->> 'revenue_float' AS revenue_float,
    properties ->> 'currency' AS currency
FROM (
    SELECT * FROM events
    WHERE received_at >= $1 AND occurred_at >= $5
        AND ($3::text IS NULL OR vendor = $3) AND ($4::text IS NULL OR app_token = $4)
    ORDER BY received_at DESC LIMIT $2
) AS newest
"""
_WRITTEN_COUNT = """
SELECT count(*) FROM (
    SELECT FROM events
    WHERE received_at >= $1 AND occurred_at >= $5
        AND ($3::text IS NULL OR vendor = $3) AND ($4::text IS NULL OR app_token = $4)
    LIMIT $2
) AS found
"""
# The first 4 KB of a query have its names.
_DROPPED = """
SELECT drop_id AS key, received_at, vendor, app_token, workspace_id, reason, subject,
    substring(query FROM 1 FOR 4096) AS query
FROM (
    SELECT * FROM dropped
    WHERE received_at >= $1
        AND ($3::text IS NULL OR vendor = $3) AND ($4::text IS NULL OR app_token = $4)
    ORDER BY received_at DESC LIMIT $2
) AS newest
"""
_DROPPED_COUNT = """
SELECT count(*) FROM (
    SELECT FROM dropped
    WHERE received_at >= $1
        AND ($3::text IS NULL OR vendor = $3) AND ($4::text IS NULL OR app_token = $4)
    LIMIT $2
) AS found
"""
# An unknown vendor has no name here.
_REJECTED = """
SELECT rejected_id AS key, received_at, vendor, reason, address, hint
FROM rejected
WHERE received_at >= $1 AND ($3::text IS NULL OR vendor IN ($3, ''))
ORDER BY received_at DESC LIMIT $2
"""
_REJECTED_COUNT = """
SELECT count(*) FROM rejected
WHERE received_at >= $1 AND ($3::text IS NULL OR vendor IN ($3, '')) AND $2::int8 > 0
"""


class Written(msgspec.Struct, frozen=True, kw_only=True, tag="written", tag_field="outcome"):
    """A row of `events`; `sent` is the vendor's name of the event."""

    key: str
    received_at: datetime
    vendor: str
    app_token: str
    sent: str
    event_type: str
    occurred_at: datetime
    workspace_id: str
    user_id: str | None
    adid: str | None
    idfa: str | None
    gps_adid: str | None
    revenue: str | None
    revenue_float: str | None
    currency: str | None


class Dropped(msgspec.Struct, frozen=True, kw_only=True, tag="dropped", tag_field="outcome"):
    """A row of `dropped`; `query` is its beginning."""

    key: int
    received_at: datetime
    vendor: str
    app_token: str
    workspace_id: str
    reason: str
    subject: str
    query: bytes


class Rejected(msgspec.Struct, frozen=True, kw_only=True, tag="rejected", tag_field="outcome"):
    """A row of `rejected`: a request without a known app."""

    key: int
    received_at: datetime
    vendor: str
    reason: str
    address: str
    hint: str


Row = Written | Dropped | Rejected


class Wanted(NamedTuple):
    """The rows to follow; None does not restrict them. A rejected request has no app."""

    vendor: str | None = None
    app_token: str | None = None


class Source:
    """A table to follow."""

    def __init__(self, rows: str, count: str, kind: type[Row], *wanted: str | None) -> None:
        self._rows = rows
        self._count = count
        self._kind = kind
        self._wanted = wanted

    async def newest(
        self, connection: asyncpg.Connection, since: datetime, most: int, *, is_long: bool
    ) -> Sequence[Row]:
        """Return the last rows that arrived since a time; a short read may miss some."""
        bounds = await self._bounds(connection, since, is_long=is_long)
        records = await connection.fetch(self._rows, since, most, *self._wanted, *bounds)
        return [msgspec.convert(dict(record.items()), self._kind) for record in records]

    async def count(self, connection: asyncpg.Connection, since: datetime) -> int:
        """Return the number of rows that a short read is of, up to COUNTED_MAX."""
        bounds = await self._bounds(connection, since, is_long=False)
        counted: int = await connection.fetchval(
            self._count, since, COUNTED_MAX, *self._wanted, *bounds
        )
        return counted

    async def _bounds(
        self, _connection: asyncpg.Connection, _since: datetime, *, is_long: bool
    ) -> Sequence[datetime]:
        del is_long
        return ()


class EventsSource(Source):
    """The table `events`: a short read is of recent events, a long one of CHUNKS_MAX chunks."""

    _oldest: datetime | None = None

    async def _bounds(
        self, connection: asyncpg.Connection, since: datetime, *, is_long: bool
    ) -> Sequence[datetime]:
        if not is_long:
            return (since - RECENT,)
        if self._oldest is None:
            found: datetime | None = None
            if await is_hypertable(connection, "events"):
                found = await connection.fetchval(_OLDEST_CHUNK)
            self._oldest = found or EPOCH
        return (self._oldest,)


def events(wanted: Wanted) -> Source:
    """Return the source of written events."""
    return EventsSource(_WRITTEN, _WRITTEN_COUNT, Written, *wanted)


def drops(wanted: Wanted) -> Source:
    """Return the source of dropped callbacks."""
    return Source(_DROPPED, _DROPPED_COUNT, Dropped, *wanted)


def rejected(wanted: Wanted) -> Source:
    """Return the source of requests that were turned away."""
    return Source(_REJECTED, _REJECTED_COUNT, Rejected, wanted.vendor)


class Arrivals(NamedTuple):
    """New rows in the order of their arrival, and the number of those left out."""

    rows: Sequence[Row]
    left_out: int = 0


class Follower:
    """Returns each row of a source once, soon after it is visible.

    Beyond SHORT_MAX rows in one read, or `most` new ones, the newest are a sample.
    """

    def __init__(self, source: Source, most: int) -> None:
        self._source = source
        self._most = most
        # The arrival of each row that was returned or left out, by key, as far as reads look back.
        self._known: dict[int | str, datetime] = {}
        # Rows that arrived before it count as known.
        self._floor = EPOCH
        self._last: datetime | None = None
        self._long_from = 0.0

    async def read(self, connection: asyncpg.Connection, now: datetime) -> Arrivals:
        """Return the new rows; `now` is the time of the server. The first read is the past."""
        since = max((self._last or now) - OVERLAP, self._floor)
        rows = await self._source.newest(connection, since, SHORT_MAX, is_long=False)
        is_sample = len(rows) >= SHORT_MAX
        if not is_sample and time.monotonic() >= self._long_from:
            rows = [*rows, *await self._read_long(connection, now)]
        new = {row.key: row for row in rows if row.key not in self._known}
        shown = sorted(new.values(), key=lambda row: row.received_at)[-self._most :]
        left_out = len(new) - len(shown)
        if is_sample:
            known = sum(at >= since for at in self._known.values())
            counted = await self._source.count(connection, since)
            left_out = max(counted - known - len(shown), left_out)
            self._floor = now
        self._known |= {key: row.received_at for key, row in new.items()}
        oldest = max(now - LOOK_BACK, self._floor)
        self._known = {key: at for key, at in self._known.items() if at >= oldest}
        self._last = now
        return Arrivals(shown, left_out)

    async def _read_long(self, connection: asyncpg.Connection, now: datetime) -> Sequence[Row]:
        since = max(now - LOOK_BACK, self._floor)
        started = time.monotonic()
        rows = await self._source.newest(connection, since, LONG_MAX, is_long=True)
        ended = time.monotonic()
        self._long_from = ended + min((ended - started) / LONG_SHARE, LONG_PAUSE_MAX_S)
        if len(rows) >= LONG_MAX:  # no later read is to take older rows for new ones
            self._floor = min(row.received_at for row in rows)
        return rows


async def server_time(connection: asyncpg.Connection) -> datetime:
    """Return the time of the server."""
    now: datetime = await connection.fetchval("SELECT clock_timestamp()")
    return now
