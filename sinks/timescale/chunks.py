"""Which chunks are there: an event that needs another one is written apart from its batch.

To make a chunk takes the server some 6 ms and a lock that writers share. In a batch, everybody
else in it would wait for a clock that some device has set wrongly.
"""

from bisect import bisect_right, insort
from datetime import datetime

from asyncpg.exceptions import PostgresError

from app.event import Event
from app.telemetry.metrics import CHUNKS
from sinks.timescale.schema import is_hypertable
from sinks.timescale.session import Session, unit

# One record without a range for a hypertable without chunks, and none where the table is gone.
_CHUNKS = """
SELECT range_start, range_end FROM timescaledb_information.hypertables
LEFT JOIN timescaledb_information.chunks USING (hypertable_schema, hypertable_name)
WHERE hypertable_name = 'events' AND hypertable_schema = current_schema()
"""
_CHUNK_OF = f"{_CHUNKS} AND range_start <= $1 AND $1 < range_end"


class Chunks:
    """The spans of time that have a chunk, as they were when last looked up.

    On a plain table, and while nothing is known, every time has one. A chunk that `retain` drops
    meanwhile is made anew by the first batch that needs it.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[datetime, datetime]] | None = None
        self._last: tuple[datetime, datetime] | None = None

    def has(self, event: Event) -> bool:
        """Whether the event's time has a chunk."""
        if self._spans is None or (
            self._last and self._last[0] <= event.occurred_at < self._last[1]
        ):
            return True  # as a rule
        place = bisect_right(self._spans, event.occurred_at, key=_start) - 1
        if place < 0 or event.occurred_at >= self._spans[place][1]:
            return False
        self._last = self._spans[place]
        return True

    async def look_up(self, session: Session) -> None:
        """Learn of every chunk; where the server refuses to tell, nothing is known."""
        try:
            async with unit(session, is_whole=False):
                records = await session.fetch(_CHUNKS) if await is_hypertable(session) else []
        except PostgresError:  # what is known grows old: by tomorrow everybody would be alone
            self._forget()
            raise
        self._last = None
        spans = sorted((record[0], record[1]) for record in records if record[0] is not None)
        self._spans = spans if records else None
        CHUNKS.set(len(spans))

    def _forget(self) -> None:
        self._spans = self._last = None
        CHUNKS.set(0)

    async def add(self, session: Session, event: Event) -> None:
        """Learn of the chunk that an event is in by now."""
        async with unit(session, is_whole=False):
            record = await session.fetchrow(_CHUNK_OF, event.occurred_at)
        if self._spans is not None and record is not None and not self.has(event):
            insort(self._spans, (record[0], record[1]))
            CHUNKS.set(len(self._spans))


def _start(span: tuple[datetime, datetime]) -> datetime:
    return span[0]
