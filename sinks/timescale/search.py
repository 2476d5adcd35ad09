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
SELECT array_agg(event_id), array_agg(received_at), {_MESSAGE}
FROM events JOIN unnest($1::timestamptz[], $2::uuid[]) AS sent (occurred_at, event_id)
    USING (occurred_at, event_id)
WHERE events.occurred_at BETWEEN $3 AND $4
HAVING count(*) > 0
"""  # noqa: S608 - made of constants
_STABLE = f"""
SELECT array_agg(event_id), {_MESSAGE} FROM stable_events WHERE event_id = ANY($1::uuid[])
HAVING count(*) > 0
"""  # noqa: S608 - made of constants


async def find_rows(session: Session, events: Sequence[Event]) -> dict[bytes, datetime]:
    """Return the arrival of each row that is there, by the ID of its event."""
    ordered = sorted(events, key=_time)
    # A day is a chunk: one query for all would lock the chunks of the days in between.
    days = [list(day) for _, day in groupby(ordered, key=_day)]
    found: dict[bytes, datetime] = {}
    async with unit(session, is_whole=len(days) > 1):
        for day in days:
            times = [event.occurred_at for event in day]
            record = await session.fetchrow(_ROWS, times, _ids(day), times[0], times[-1])
            if record is not None:
                ids: list[UUID] = record[0]
                arrivals: list[datetime] = record[1]
                found.update(zip((id_.bytes for id_ in ids), arrivals, strict=True))
    return found


async def find_stable(session: Session, events: Sequence[Event]) -> set[bytes]:
    """Return the IDs of the events that were entered under any time."""
    record = await session.fetchrow(_STABLE, _ids(events))
    ids: list[UUID] = record[0] if record else []
    return {id_.bytes for id_ in ids}


def _ids(events: Sequence[Event]) -> list[UUID]:
    return [UUID(bytes=event.event_id) for event in events]


def _time(event: Event) -> datetime:
    return event.occurred_at


def _day(event: Event) -> date:
    return event.occurred_at.date()
