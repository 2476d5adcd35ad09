"""The presence of an event or a drop in the database, and its arrival. Writes nothing."""

from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from app.dropped import Dropped
from app.event import Event
from sinks.timescale.hosts import Connection

# Chunks are found by the time; with a stable ID it may be another one than the event's.
_STABLE = "SELECT occurred_at FROM stable_events WHERE event_id = $1"
_EVENT = "SELECT received_at FROM events WHERE occurred_at = $1 AND event_id = $2"
_DROP = """
SELECT max(received_at) FROM dropped
WHERE workspace_id = $1 AND reason = $2 AND subject = $3
    AND vendor = $4 AND app_token = $5 AND query = $6 AND body = $7
"""


class Presence(NamedTuple):
    """Whether the database would report a duplicate, and the arrival of the row if there is one."""

    is_known: bool
    received_at: datetime | None = None


async def presence_of(connection: Connection, event: Event) -> Presence:
    """Return the presence of an event in the table.

    A stable ID outlives a row that was deleted by hand.
    """
    event_id = UUID(bytes=event.event_id)
    occurred_at: datetime | None = event.occurred_at
    if event.has_stable_id:
        occurred_at = await connection.fetchval(_STABLE, event_id)
        if occurred_at is None:
            return Presence(False)
    received_at: datetime | None = await connection.fetchval(_EVENT, occurred_at, event_id)
    return Presence(event.has_stable_id or received_at is not None, received_at)


async def drop_received_at(connection: Connection, dropped: Dropped) -> datetime | None:
    """Return the last arrival of an equal callback that is in quarantine, or None."""
    received_at: datetime | None = await connection.fetchval(
        _DROP, dropped.workspace_id, dropped.reason.value, dropped.subject, dropped.vendor,
        dropped.app_token, dropped.query, dropped.body,
    )  # fmt: skip
    return received_at
