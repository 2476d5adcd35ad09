"""Events in PostgreSQL with TimescaleDB: COPY, and ON CONFLICT where the database must decide."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from operator import attrgetter

from asyncpg.exceptions import PostgresError

from app.event import Event, Outcome
from sinks.timescale.chunks import Chunks
from sinks.timescale.connection import OpenSession, ReconnectingConnection
from sinks.timescale.errors import Cause, classify
from sinks.timescale.schema import keep_chunk_ahead
from sinks.timescale.session import Session, open_session
from sinks.timescale.writes import (
    BATCH_LOCK_TIMEOUT_S,
    HALVES_LOCK_TIMEOUT_S,
    write_batch,
    write_one,
)

# The wait of a contested event for the writer that has locked its row.
CONTESTED_LOCK_TIMEOUT_S = 0.5
# After a contested event has waited in vain, the next ones wait only as long as a row of a halved
# batch, until so much time has passed since the last of them. Otherwise hundreds of events of one
# frozen writer would delay all other contested events.
SHORT_WAITS_S = 1.0
# The interval at which the generation and the clock are read.
IDENTITY_S = 1.0
# The interval at which the chunks are read, and that of the coming day is made.
CHUNKS_S = 60.0

log = logging.getLogger(__name__)

_event_id = attrgetter("event_id")


class TimescaleSink:
    """Writes events to the hypertable over two connections: for batches, and for contested events.

    `open_session` and `now`, the wall clock, are for a simulation.
    """

    def __init__(
        self,
        database_url: str,
        *,
        commit_timeout_s: float,
        open_session: OpenSession = open_session,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._commit_timeout_s = commit_timeout_s
        self._now = now
        self._batches, self._contested = (
            ReconnectingConnection(
                database_url,
                commit_timeout_s=commit_timeout_s,
                lock_timeout_s=lock_timeout_s,
                open_session=open_session,
                now=now,
            )
            for lock_timeout_s in (BATCH_LOCK_TIMEOUT_S, CONTESTED_LOCK_TIMEOUT_S)
        )
        self._chunks = Chunks()
        self._last_locked_at: float | None = None
        self._background: list[asyncio.Task[None]] = []

    @property
    def generation(self) -> str | None:
        """See `Sink`."""
        return self._batches.generation

    @property
    def clock_ahead_s(self) -> float | None:
        """See `Sink`."""
        return self._batches.clock_ahead_s

    async def write(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """See `Sink`. Raises TimeoutError after the commit time-out."""
        async with asyncio.timeout(self._commit_timeout_s), self._batches as session:
            if not self._background:
                self._start_background()
            outcomes = await write_batch(session, events, self._chunks)
        return list(map(outcomes.__getitem__, map(_event_id, events)))

    async def write_contested(self, event: Event) -> Outcome:
        """See `Sink`. Raises TimeoutError after the commit time-out."""
        async with asyncio.timeout(self._commit_timeout_s), self._contested as session:
            if not self._background:
                self._start_background()
            outcome = await self._write_one(session, event)
            if not self._chunks.has(event):
                with suppress(PostgresError):  # the event is written; `_keep_chunks` reads again
                    await self._chunks.add(session, event)
        return outcome

    async def ping(self) -> None:
        """See `Sink`. Raises TimeoutError after the commit time-out."""
        async with asyncio.timeout(self._commit_timeout_s), self._batches as session:
            if not self._background:
                self._start_background()
            await session.fetchval("SELECT 1")

    async def close(self) -> None:
        """See `Sink`."""
        for task in self._background:
            task.cancel()
        await self._batches.close()
        await self._contested.close()

    async def _write_one(self, session: Session, event: Event) -> Outcome:
        now = asyncio.get_running_loop().time()
        if self._last_locked_at is not None and now - self._last_locked_at > SHORT_WAITS_S:
            await session.wait_for_locks(CONTESTED_LOCK_TIMEOUT_S)
            self._last_locked_at = None
        try:
            return await write_one(session, event)
        except PostgresError as error:
            if classify(error).cause is Cause.LOCKED:
                self._last_locked_at = asyncio.get_running_loop().time()
                # Each time: the session may be another one by now.
                await session.wait_for_locks(HALVES_LOCK_TIMEOUT_S)
            raise

    def _start_background(self) -> None:
        self._background = [
            asyncio.create_task(self._keep_chunks()),
            asyncio.create_task(self._keep_identity()),
        ]

    async def _keep_identity(self) -> None:
        while True:
            await asyncio.sleep(IDENTITY_S)
            # The next batch fails for the same reason, and is logged. Until a success the
            # generation is unknown, and Redis is not used.
            with suppress(Exception):
                async with asyncio.timeout(self._commit_timeout_s), self._batches:
                    await self._batches.refresh()

    async def _keep_chunks(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._commit_timeout_s), self._contested as session:
                    try:
                        now = datetime.fromtimestamp(self._now(), UTC)
                        await keep_chunk_ahead(session, "events", now, CONTESTED_LOCK_TIMEOUT_S)
                    except PostgresError as error:  # the first event of a day makes it
                        _warn("chunk not made ahead of time", error)
                    await self._chunks.look_up(session)
            except Exception as error:  # noqa: BLE001 - repeated after a while, whatever it was
                _warn("chunks not looked up", error)
            await asyncio.sleep(CHUNKS_S)


def _warn(message: str, error: Exception) -> None:
    log.warning(message, extra={"error": type(error).__name__})
