"""Events in PostgreSQL with TimescaleDB: COPY, and ON CONFLICT where the database must decide."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from asyncpg.exceptions import LockNotAvailableError, PostgresError

from app.event import Event, Outcome
from sinks.timescale.chunks import Chunks
from sinks.timescale.connection import Lane
from sinks.timescale.schema import keep_chunk_ahead
from sinks.timescale.session import Session
from sinks.timescale.writes import (
    BATCH_LOCK_TIMEOUT_S,
    SEARCH_LOCK_TIMEOUT_S,
    write_alone,
    write_batch,
)

# How long a twin waits for who else is writing its event.
TWIN_LOCK_TIMEOUT_S = 0.5
# Where one twin waited in vain, others will: for so long after the last of them, the next ones get
# only the time of the search. Else hundreds of a frozen writer's twins would hold up all others.
HASTE_S = 1.0
# How often to look which data the connection leads to.
GENERATION_S = 1.0
# How often to look which chunks there are, and to make that of the coming interval.
CHUNKS_S = 60.0

log = logging.getLogger(__name__)


class TimescaleSink:
    """Writes events to the hypertable over two connections: one for batches, one for twins."""

    def __init__(self, database_url: str, *, commit_timeout_s: float) -> None:
        self._commit_timeout_s = commit_timeout_s
        self._batches = Lane(database_url, commit_timeout_s, BATCH_LOCK_TIMEOUT_S)
        self._twins = Lane(database_url, commit_timeout_s, TWIN_LOCK_TIMEOUT_S)
        self._chunks = Chunks()
        self._held_up_at: float | None = None
        self._tending: list[asyncio.Task[None]] = []

    @property
    def generation(self) -> str | None:
        """Which data the batches go to; None while that is not known."""
        return self._batches.generation

    @property
    def clock_ahead_s(self) -> float | None:
        """See `Sink`. Measured each second; known for ten."""
        return self._batches.clock_ahead_s

    async def write(self, events: Sequence[Event], *, contested: bool) -> Sequence[Outcome]:
        """See `Sink`. Takes no longer than the commit time-out."""
        lane = self._twins if contested else self._batches
        lacking = [event for event in events if not self._chunks.has(event)]
        outcomes = {event.event_id: Outcome.CONTESTED for event in lacking}
        async with asyncio.timeout(self._commit_timeout_s), lane.connection() as connection:
            if not self._tending:
                self._tending += map(asyncio.create_task, (self._keep_chunks(), self._look_again()))
            if not events:
                await connection.fetchval("SELECT 1")
            elif contested:
                outcomes |= await self._write_twins(connection, events)
                for event in lacking:
                    with suppress(PostgresError):  # it is written, whoever tells of its chunk
                        await self._chunks.add(connection, event)
            elif here := [event for event in events if event.event_id not in outcomes]:
                outcomes |= await write_batch(connection, here)
        return [outcomes[event.event_id] for event in events]

    async def close(self) -> None:
        """See `Sink`."""
        for task in self._tending:
            task.cancel()
        await self._batches.close()
        await self._twins.close()

    async def _write_twins(
        self, connection: Session, events: Sequence[Event]
    ) -> dict[bytes, Outcome]:
        if self._held_up_at is not None and time.monotonic() - self._held_up_at > HASTE_S:
            await connection.wait_for_locks(TWIN_LOCK_TIMEOUT_S)
            self._held_up_at = None
        try:
            return await write_alone(connection, events)
        except LockNotAvailableError:
            self._held_up_at = time.monotonic()
            # Each time: it may be another connection by now.
            await connection.wait_for_locks(SEARCH_LOCK_TIMEOUT_S)
            raise

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(GENERATION_S)
            # What fails here fails for the next batch too, and is told there; until the next
            # success the generation is not known, and Redis is not believed.
            with suppress(Exception):
                async with asyncio.timeout(self._commit_timeout_s), self._batches.connection():
                    await self._batches.look()

    async def _keep_chunks(self) -> None:
        while True:
            try:
                timeout = asyncio.timeout(self._commit_timeout_s)
                async with timeout, self._twins.connection() as connection:
                    try:
                        await keep_chunk_ahead(connection, TWIN_LOCK_TIMEOUT_S)
                    except PostgresError as error:  # the first event of a day makes it
                        _warn("chunk not made ahead of time", error)
                    await self._chunks.look_up(connection)
            except Exception as error:  # noqa: BLE001 - tried again, whatever it was
                _warn("chunks not looked up", error)
            await asyncio.sleep(CHUNKS_S)


def _warn(what: str, error: Exception) -> None:
    log.warning(what, extra={"error": type(error).__name__})
