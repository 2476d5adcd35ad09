"""The chunks of the hypertable: an event that needs a new one is written apart from its batch.

The server makes a chunk under a lock that all writers share. In a batch, every event would wait for
the one whose device has a wrong clock.
"""

from bisect import bisect_right
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

Range = tuple[datetime, datetime]


class Chunks:
    """The time ranges of the chunks, as of the last look-up.

    On a plain table, and while nothing is known, every time has a chunk. The first batch that
    needs a chunk that `retain` has dropped since makes it again.
    """

    def __init__(self) -> None:
        self._starts: list[datetime] | None = None
        self._ends: list[datetime] = []

    def has(self, event: Event) -> bool:
        """Whether the event's time has a chunk."""
        return self._starts is None or self._place_of(event.occurred_at) is not None

    def split(self, ordered: list[Event]) -> tuple[list[Event], list[Event]]:
        """Return the events whose times have a chunk, and the others; they come ordered by time."""
        if self._starts is None or not ordered:
            return ordered, []
        place = bisect_right(self._starts, ordered[0].occurred_at) - 1
        if place >= 0 and ordered[-1].occurred_at < self._ends[place]:
            return ordered, []  # all in one chunk
        lacking = [event for event in ordered if not self.has(event)]
        return [event for event in ordered if self.has(event)] if lacking else ordered, lacking

    async def look_up(self, session: Session) -> None:
        """Read the ranges of all chunks; they are unknown afterwards where that fails."""
        try:
            async with unit(session, is_whole=False):
                records = (
                    await session.fetch(_CHUNKS) if await is_hypertable(session, "events") else []
                )
        except PostgresError:  # an old list would set every event of a new day apart
            self._set(None)
            raise
        ranges: list[Range] = [
            (record[0], record[1]) for record in records if record[0] is not None
        ]
        self._set(sorted(ranges) if records else None)

    async def add(self, session: Session, event: Event) -> None:
        """Read the range of the chunk that an event was written to."""
        async with unit(session, is_whole=False):
            record = await session.fetchrow(_CHUNK_OF, event.occurred_at)
        if self._starts is not None and record is not None and not self.has(event):
            made: Range = (record[0], record[1])
            self._set(sorted([*zip(self._starts, self._ends, strict=True), made]))

    def _set(self, ranges: list[Range] | None) -> None:
        self._starts = None if ranges is None else [start for start, _ in ranges]
        self._ends = [end for _, end in ranges or []]
        CHUNKS.set(len(self._ends))

    def _place_of(self, moment: datetime) -> int | None:
        place = bisect_right(self._starts or [], moment) - 1
        return place if place >= 0 and moment < self._ends[place] else None
