"""Events in PostgreSQL with TimescaleDB: COPY, and ON CONFLICT where the database must decide."""

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from uuid import UUID

import asyncpg
import msgspec
from asyncpg.exceptions import (
    DeadlockDetectedError,
    LockNotAvailableError,
    PostgresError,
    UniqueViolationError,
)

from app.event import Event, Outcome
from sinks.encoding import COLUMNS, TYPES, as_arrays, encode_rows
from sinks.lane import Lane, milliseconds, transaction
from sinks.schema import keep_chunk_ahead

# How long a write waits for a row or a chunk that somebody else is writing: a batch, the search
# for what holds a batch up, and a twin alone. A healthy writer is done in milliseconds; a frozen
# one must not take its twins' neighbours with it.
BATCH_LOCK_TIMEOUT_S = 0.1
SEARCH_LOCK_TIMEOUT_S = 0.01
TWIN_LOCK_TIMEOUT_S = 0.5
# How often to look which data the connection leads to.
GENERATION_S = 1.0
CHUNK_AHEAD_S = 3600.0

_NAMES = ", ".join(COLUMNS)
_ARRAYS = ", ".join(f"${place}::{type_}[]" for place, type_ in enumerate(TYPES, 1))

# One statement is one transaction: the stable ID and the row are there together or not at all.
_INSERT = f"""
WITH sent AS (
    SELECT * FROM unnest({_ARRAYS}, ${len(TYPES) + 1}::boolean[]) AS sent ({_NAMES}, has_stable_id)
), entered AS (
    INSERT INTO stable_events (event_id, occurred_at)
    SELECT event_id, occurred_at FROM sent WHERE has_stable_id
    ON CONFLICT DO NOTHING RETURNING event_id
)
INSERT INTO events ({_NAMES})
SELECT {_NAMES} FROM sent
WHERE NOT has_stable_id OR event_id IN (SELECT event_id FROM entered)
ON CONFLICT DO NOTHING RETURNING event_id
"""  # noqa: S608 - made of constants
_ENTER_STABLE = """
INSERT INTO stable_events (event_id, occurred_at)
SELECT * FROM unnest($1::uuid[], $2::timestamptz[])
ON CONFLICT DO NOTHING RETURNING event_id
"""

_BATCH_PATIENCE = f"SET lock_timeout = {milliseconds(BATCH_LOCK_TIMEOUT_S)}"
_SEARCH_PATIENCE = f"SET lock_timeout = {milliseconds(SEARCH_LOCK_TIMEOUT_S)}"

Attempt = Callable[[asyncpg.Connection, Sequence[Event]], Awaitable[dict[bytes, Outcome]]]

log = logging.getLogger(__name__)


class TimescaleSink:
    """Writes events to the hypertable over two connections: one for batches, one for twins."""

    def __init__(self, database_url: str, *, commit_timeout_s: float) -> None:
        self._commit_timeout_s = commit_timeout_s
        self._batches = Lane(database_url, commit_timeout_s, BATCH_LOCK_TIMEOUT_S)
        self._twins = Lane(database_url, commit_timeout_s, TWIN_LOCK_TIMEOUT_S)
        self._tending: list[asyncio.Task[None]] = []

    @property
    def generation(self) -> str | None:
        """Which data the batches go to; None while that is not known."""
        return self._batches.generation

    async def write(self, events: Sequence[Event], *, contested: bool) -> Sequence[Outcome]:
        """See `Sink`. Takes no longer than the commit time-out."""
        lane = self._twins if contested else self._batches
        async with asyncio.timeout(self._commit_timeout_s), lane.connection() as connection:
            if not self._tending:
                self._tending += map(asyncio.create_task, (self._keep_chunks(), self._look_again()))
            if not events:
                await connection.fetchval("SELECT 1")
                return []
            write = _write_alone if contested else _write_batch
            outcomes = await write(connection, events)
        return [outcomes[event.event_id] for event in events]

    async def close(self) -> None:
        """See `Sink`."""
        for task in self._tending:
            task.cancel()
        await self._batches.close()
        await self._twins.close()

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
                    await keep_chunk_ahead(connection)
            except Exception as error:  # noqa: BLE001 - else the first event of a day makes it
                log.warning("chunk not made ahead of time", extra={"error": type(error).__name__})
            await asyncio.sleep(CHUNK_AHEAD_S)


async def _write_batch(
    connection: asyncpg.Connection, events: Sequence[Event]
) -> dict[bytes, Outcome]:
    """Write all events at once, or else all but those that must be written alone."""
    # In the order of the index: writers who all go the same way do not deadlock.
    ordered = sorted(events, key=lambda event: (event.occurred_at, event.event_id))
    try:
        return await _once_more_after_deadlock(_copy, connection, ordered)
    except UnicodeEncodeError:
        pass  # an adapter's mistake: the row is found like any other culprit
    except PostgresError as error:
        # Some rows are there already, or one is at fault, or locked: the search tells which.
        if not isinstance(error, UniqueViolationError) and not _blames_a_row(error):
            raise
    await connection.execute(_SEARCH_PATIENCE)
    try:
        outcomes = await _insert_halving(connection, ordered)
    except PostgresError:
        await connection.execute(_BATCH_PATIENCE)
        raise
    await connection.execute(_BATCH_PATIENCE)
    return outcomes


async def _write_alone(
    connection: asyncpg.Connection, events: Sequence[Event]
) -> dict[bytes, Outcome]:
    """Insert events one by one, each with its own fate; raises where that is not decided."""
    outcomes: dict[bytes, Outcome] = {}
    for event in events:
        try:
            outcomes |= await _once_more_after_deadlock(_insert, connection, [event])
        except PostgresError as error:
            if isinstance(error, LockNotAvailableError) or not _blames_a_row(error):
                raise
            await _try_harmless(connection, event)
            log.warning("the database refuses an event", extra={"sqlstate": error.sqlstate})
            outcomes[event.event_id] = Outcome.REFUSED
    return outcomes


async def _once_more_after_deadlock(
    attempt: Attempt, connection: asyncpg.Connection, events: Sequence[Event]
) -> dict[bytes, Outcome]:
    try:
        return await attempt(connection, events)
    except DeadlockDetectedError:
        return await attempt(connection, events)


async def _copy(connection: asyncpg.Connection, events: Sequence[Event]) -> dict[bytes, Outcome]:
    stable = [event for event in events if event.has_stable_id]
    if not stable:
        await _copy_rows(connection, events)
        return {event.event_id: Outcome.WRITTEN for event in events}
    async with transaction(connection):
        records = await connection.fetch(
            _ENTER_STABLE,
            [UUID(bytes=event.event_id) for event in stable],
            [event.occurred_at for event in stable],
        )
        known = {event.event_id for event in stable} - {record[0].bytes for record in records}
        await _copy_rows(connection, [event for event in events if event.event_id not in known])
    return {
        event.event_id: Outcome.DUPLICATE if event.event_id in known else Outcome.WRITTEN
        for event in events
    }


async def _copy_rows(connection: asyncpg.Connection, events: Sequence[Event]) -> None:
    await connection.copy_to_table(
        "events",
        # Mere bytes would be taken for the name of a file. The type is not declared, but taken.
        source=memoryview(encode_rows(events)),  # type: ignore[arg-type]
        columns=COLUMNS,
        format="binary",
    )


async def _insert_halving(
    connection: asyncpg.Connection, events: Sequence[Event]
) -> dict[bytes, Outcome]:
    """Insert what is not there yet. A row at fault, or locked, costs no other its place."""
    try:
        return await _once_more_after_deadlock(_insert, connection, events)
    except PostgresError as error:
        if not _blames_a_row(error):
            raise
    if len(events) == 1:
        return {events[0].event_id: Outcome.CONTESTED}
    middle = len(events) // 2
    first = await _insert_halving(connection, events[:middle])
    return first | await _insert_halving(connection, events[middle:])


async def _insert(connection: asyncpg.Connection, events: Sequence[Event]) -> dict[bytes, Outcome]:
    records = await connection.fetch(
        _INSERT, *as_arrays(events), [event.has_stable_id for event in events]
    )
    written = {record[0].bytes for record in records}
    return {
        event.event_id: Outcome.WRITTEN if event.event_id in written else Outcome.DUPLICATE
        for event in events
    }


async def _try_harmless(connection: asyncpg.Connection, refused: Event) -> None:
    """Write the refused event without anything that its sender chose, and take it back.

    Raises what the database raises: then the fault is not in the event, but in the schema.
    """
    harmless = msgspec.structs.replace(
        refused, event_id=os.urandom(16), user_id=None, adid=None, idfa=None, gps_adid=None,
        os_name=None, country=None, properties={},
    )  # fmt: skip
    async with transaction(connection, end="ROLLBACK"):
        await _insert(connection, [harmless])


def _blames_a_row(error: PostgresError) -> bool:
    """Whether some rows are the cause: their data, or the locks of others on them."""
    state = error.sqlstate or ""
    is_data = (state[:2] in ("22", "23") and state != "23505") or state == "54000"
    return is_data or isinstance(error, LockNotAvailableError)
