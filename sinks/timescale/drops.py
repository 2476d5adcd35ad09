"""Reads of the quarantine, for the commands."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg
import msgspec

from app.event import DropReason
from sinks.timescale.schema import SchemaError

# Of the groups, only the largest are returned, with the numbers of all.
_COUNTS = """
SELECT workspace_id, vendor, app_token, reason, subject, count(*) AS callbacks,
    min(received_at) AS first_received_at, max(received_at) AS last_received_at,
    count(*) OVER () AS groups, (sum(count(*)) OVER ())::int8 AS total
FROM dropped WHERE {condition}
GROUP BY 1, 2, 3, 4, 5 ORDER BY callbacks DESC, last_received_at DESC
LIMIT {most}
"""
_NEWEST = """
SELECT drop_id, received_at, workspace_id, vendor, app_token, reason, subject, method,
    query, content_type, body, event
FROM dropped WHERE {condition}
ORDER BY received_at DESC, drop_id DESC LIMIT {most}
"""
# One pass over the period, and one look-up in the index for each of the groups.
_UNMAPPED = """
WITH tokens AS (
    SELECT workspace_id, vendor, app_token, subject, count(*) AS callbacks,
        min(received_at) AS first_received_at, max(received_at) AS last_received_at
    FROM dropped WHERE {condition}
    GROUP BY 1, 2, 3, 4 ORDER BY callbacks DESC, subject LIMIT {most}
)
SELECT tokens.*, coalesce(query, '') AS query, coalesce(content_type, '') AS content_type,
    coalesce(body, '') AS body
FROM tokens LEFT JOIN LATERAL (
    SELECT query, content_type, body FROM dropped
    WHERE workspace_id = tokens.workspace_id AND reason = 'unmapped_event'
        AND subject = tokens.subject AND received_at = tokens.last_received_at
        AND vendor = tokens.vendor AND app_token = tokens.app_token
    LIMIT 1
) AS newest ON true
ORDER BY callbacks DESC, subject
"""


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the quarantine; None does not restrict it.

    `since` and `until` are about the arrival; `until` itself is outside.
    """

    since: datetime | None = None
    until: datetime | None = None
    vendor: str | None = None
    workspace_id: str | None = None
    app_token: str | None = None
    reason: DropReason | None = None
    subject: str | None = None


class Condition(NamedTuple):
    """A condition of SQL, with the values of its parameters `$1` and up."""

    sql: str
    values: tuple[datetime | str, ...]


def condition_of(selection: Selection) -> Condition:
    """Return the condition under which a row of `dropped` is in a selection."""
    wanted: tuple[tuple[str, datetime | str | None], ...] = (
        ("received_at >=", selection.since),
        ("received_at <", selection.until),
        ("vendor =", selection.vendor),
        ("workspace_id =", selection.workspace_id),
        ("app_token =", selection.app_token),
        ("reason =", None if selection.reason is None else selection.reason.value),
        ("subject =", selection.subject),
    )
    given = [(test, value) for test, value in wanted if value is not None]
    tests = [f"{test} ${number}" for number, (test, _) in enumerate(given, 1)]
    return Condition(" AND ".join(tests) or "true", tuple(value for _, value in given))


class DropCount(msgspec.Struct, frozen=True, kw_only=True, tag="count", tag_field="kind"):
    """The drops with one reason and subject."""

    workspace_id: str
    vendor: str
    app_token: str
    reason: DropReason
    subject: str
    callbacks: int
    first_received_at: datetime
    last_received_at: datetime


class DropCounts(NamedTuple):
    """The largest groups of a selection, and the numbers of all."""

    largest: Sequence[DropCount]
    groups: int
    callbacks: int


async def count(connection: asyncpg.Connection, selection: Selection, most: int) -> DropCounts:
    """Count the drops of a selection by reason and subject; at most `most` groups."""
    condition, values = condition_of(selection)
    records = await connection.fetch(_COUNTS.format(condition=condition, most=most), *values)
    largest = [msgspec.convert(dict(record.items()), DropCount) for record in records]
    if not records:
        return DropCounts([], 0, 0)
    groups: int = records[0]["groups"]
    callbacks: int = records[0]["total"]
    return DropCounts(largest, groups, callbacks)


class KeptDrop(msgspec.Struct, frozen=True, kw_only=True):
    """A callback in quarantine, as it was sent; of a refused event, its encoded form."""

    drop_id: int
    received_at: datetime
    workspace_id: str
    vendor: str
    app_token: str
    reason: DropReason
    subject: str
    method: str
    query: bytes
    content_type: str
    body: bytes
    event: bytes | None


async def newest(
    connection: asyncpg.Connection, selection: Selection, most: int
) -> Sequence[KeptDrop]:
    """Return the newest drops of a selection, the last to arrive first."""
    condition, values = condition_of(selection)
    records = await connection.fetch(_NEWEST.format(condition=condition, most=most), *values)
    return [msgspec.convert(dict(record.items()), KeptDrop) for record in records]


class UnmappedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor's event without a mapping, with the newest callback that names it."""

    workspace_id: str
    vendor: str
    app_token: str
    subject: str
    callbacks: int
    first_received_at: datetime
    last_received_at: datetime
    query: bytes = b""
    content_type: str = ""
    body: bytes = b""


async def unmapped(
    connection: asyncpg.Connection, selection: Selection, most: int
) -> Sequence[UnmappedEvent]:
    """Return the unmapped events of a selection, the most frequent first."""
    statement, values = unmapped_statement(selection, most)
    records = await connection.fetch(statement, *values)
    return [msgspec.convert(dict(record.items()), UnmappedEvent) for record in records]


def unmapped_statement(selection: Selection, most: int) -> Condition:
    """Return the query of `unmapped`."""
    reason = DropReason.UNMAPPED_EVENT
    condition, values = condition_of(msgspec.structs.replace(selection, reason=reason))
    return Condition(_UNMAPPED.format(condition=condition, most=most), values)


async def require_quarantine(connection: asyncpg.Connection) -> None:
    """Raise SchemaError where the tables of quarantine are missing."""
    if await connection.fetchval("SELECT to_regclass('dropped')") is None:
        raise SchemaError("the table `dropped` is missing: run `python -m app migrate`")
