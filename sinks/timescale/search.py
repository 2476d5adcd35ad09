"""The search for duplicates: each one is confirmed by a commit that waits for the standbys.

The row that a search finds may be visible and not yet replicated, when the wait of its commit was
cut short. A transaction that writes nothing waits for no standby; so a search that finds something
writes a message into the WAL behind that row, and its commit waits until a standby has both.
"""

from collections.abc import Sequence
from datetime import date, datetime
from itertools import groupby
from uuid import UUID

from app.event import Event
from sinks.timescale.session import Session, unit

_MESSAGE = "pg_logical_emit_message(true, 'flokit', '')"
# TimescaleDB excludes chunks by these bounds, and not by a join.
_ROWS = f"""
SELECT array_agg(event_id), {_MESSAGE}
FROM events JOIN unnest($1::timestamptz[], $2::uuid[]) AS sent (occurred_at, event_id)
    USING (occurred_at, event_id)
WHERE events.occurred_at BETWEEN $3 AND $4
HAVING count(*) > 0
"""  # noqa: S608 - made of constants
_STABLE = f"""
SELECT array_agg(event_id), {_MESSAGE} FROM stable_events WHERE event_id = ANY($1::uuid[])
HAVING count(*) > 0
"""  # noqa: S608 - made of constants


async def find_rows(session: Session, events: Sequence[Event]) -> set[bytes]:
    """Return the IDs of the events that have a row."""
    ordered = sorted(events, key=_time)
    # A day is a chunk: one query for all would lock the chunks of the days in between.
    days = [list(day) for _, day in groupby(ordered, key=_day)]
    found: set[bytes] = set()
    async with unit(session, is_whole=len(days) > 1):
        for day in days:
            times = [event.occurred_at for event in day]
            found |= await _found(session, _ROWS, times, _ids(day), times[0], times[-1])
    return found


async def find_stable(session: Session, events: Sequence[Event]) -> set[bytes]:
    """Return the IDs of the events that were entered under any time."""
    return await _found(session, _STABLE, _ids(events))


async def _found(session: Session, query: str, *arguments: object) -> set[bytes]:
    record = await session.fetchrow(query, *arguments)
    ids: list[UUID] = record[0] if record else []
    return {found.bytes for found in ids}


def _ids(events: Sequence[Event]) -> list[UUID]:
    return [UUID(bytes=event.event_id) for event in events]


def _time(event: Event) -> datetime:
    return event.occurred_at


def _day(event: Event) -> date:
    return event.occurred_at.date()
