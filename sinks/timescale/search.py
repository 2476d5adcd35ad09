"""What is there already: a duplicate is told by the transaction that found it, and its word.

The row that a search finds may be visible and on no standby yet, when the wait of its commit was
cut short. A transaction that writes nothing waits for nobody; so each search that finds something
writes a word into the WAL behind that row, and its commit waits until a standby has both.
"""

from collections.abc import Sequence
from datetime import date
from itertools import groupby
from uuid import UUID

from app.event import Event
from sinks.timescale.session import Session, unit

_WORD = "pg_logical_emit_message(true, 'flokit', '')"
# The bounds are for TimescaleDB, which leaves out chunks for them, and not for a join.
_ROWS = f"""
SELECT array_agg(event_id), {_WORD}
FROM events JOIN unnest($1::timestamptz[], $2::uuid[]) AS sent (occurred_at, event_id)
    USING (occurred_at, event_id)
WHERE events.occurred_at BETWEEN $3 AND $4
HAVING count(*) > 0
"""  # noqa: S608 - made of constants
_STABLE = f"""
SELECT array_agg(event_id), {_WORD} FROM stable_events WHERE event_id = ANY($1::uuid[])
HAVING count(*) > 0
"""  # noqa: S608 - made of constants


async def find_rows(session: Session, events: Sequence[Event]) -> set[bytes]:
    """Return the IDs of those events that have a row."""
    ordered = sorted(events, key=lambda event: event.occurred_at)
    # A day is a chunk: the days between two that are far apart are not asked.
    days = [list(day) for _, day in groupby(ordered, key=_day)]
    found: set[bytes] = set()
    async with unit(session, is_whole=len(days) > 1):
        for day in days:
            times = [event.occurred_at for event in day]
            found |= await _found(session, _ROWS, times, _ids(day), times[0], times[-1])
    return found


async def find_stable(session: Session, events: Sequence[Event]) -> set[bytes]:
    """Return the IDs of those events that are known under any time."""
    return await _found(session, _STABLE, _ids(events))


async def _found(session: Session, query: str, *arguments: object) -> set[bytes]:
    record = await session.fetchrow(query, *arguments)
    return {found.bytes for found in record[0]} if record else set()


def _ids(events: Sequence[Event]) -> list[UUID]:
    return [UUID(bytes=event.event_id) for event in events]


def _day(event: Event) -> date:
    return event.occurred_at.date()
