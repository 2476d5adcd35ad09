"""Events in PostgreSQL with TimescaleDB: COPY, and ON CONFLICT where the database must decide."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
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
from sinks.schema import keep_chunk_ahead, read_generation

CONNECT_TIMEOUT_S = 3.0
# How long a write waits for a row or a chunk that somebody else is writing. A healthy writer is
# done in milliseconds; a frozen one must not take its twins' neighbours with it.
LOCK_TIMEOUT_S = 0.5
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

log = logging.getLogger(__name__)


class TimescaleSink:
    """Writes events to the hypertable over two connections: one for batches, one for twins."""

    def __init__(self, database_url: str, *, commit_timeout_s: float) -> None:
        self._commit_timeout_s = commit_timeout_s
        self._batches = _Lane(database_url, commit_timeout_s)
        self._twins = _Lane(database_url, commit_timeout_s)
        self._chunks: asyncio.Task[None] | None = None

    @property
    def generation(self) -> str | None:
        """Which data the batches go to; None while that is not known."""
        return self._batches.generation

    async def write(self, events: Sequence[Event], *, contested: bool) -> Sequence[Outcome]:
        """See `Sink`. Takes no longer than the commit time-out."""
        lane = self._twins if contested else self._batches
        async with asyncio.timeout(self._commit_timeout_s), lane.connection() as connection:
            if self._chunks is None:
                self._chunks = asyncio.create_task(self._keep_chunks_ahead())
            if not events:
                await connection.fetchval("SELECT 1")
                return []
            try:
                outcomes = await _write(connection, events, contested=contested)
            except LockNotAvailableError:
                if contested:
                    raise
                return [Outcome.CONTESTED] * len(events)
        return [outcomes[event.event_id] for event in events]

    async def close(self) -> None:
        """See `Sink`."""
        if self._chunks is not None:
            self._chunks.cancel()
        await self._batches.close()
        await self._twins.close()

    async def _keep_chunks_ahead(self) -> None:
        while True:
            try:
                timeout = asyncio.timeout(self._commit_timeout_s)
                async with timeout, self._twins.connection() as connection:
                    await keep_chunk_ahead(connection)
            except Exception as error:  # noqa: BLE001 - else the first event of a day makes it
                log.warning("chunk not made ahead of time", extra={"error": type(error).__name__})
            await asyncio.sleep(CHUNK_AHEAD_S)


class _Lane:
    """One connection for one statement at a time; opened when needed, given up when in doubt."""

    def __init__(self, database_url: str, statement_timeout_s: float) -> None:
        self._database_url = database_url
        self._statement_timeout_s = statement_timeout_s
        self._lock = asyncio.Lock()
        self._connection: asyncpg.Connection | None = None
        self._generation: str | None = None

    @property
    def generation(self) -> str | None:
        is_open = self._connection is not None and not self._connection.is_closed()
        return self._generation if is_open else None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        async with self._lock:
            if self._connection is None or self._connection.is_closed():
                self._connection = await self._open()
            try:
                yield self._connection
            except PostgresError:
                raise  # the server has answered: the connection is as good as before
            except BaseException:
                # A time-out or a cancel leaves it open what the server has done and will still
                # send. The unique index decides at the retry; this connection is not used again.
                self._connection.terminate()
                raise

    async def _open(self) -> asyncpg.Connection:
        connection = await asyncpg.connect(
            self._database_url,
            timeout=CONNECT_TIMEOUT_S,
            server_settings={
                "application_name": "flokit-gateway",
                "lock_timeout": f"{LOCK_TIMEOUT_S * 1000:.0f}",
                "statement_timeout": f"{self._statement_timeout_s * 1000:.0f}",
                # The server must notice a gateway that is frozen or gone: its locks hold others up.
                "idle_in_transaction_session_timeout": f"{self._statement_timeout_s * 1000:.0f}",
                "tcp_keepalives_idle": "5",
                "tcp_keepalives_interval": "5",
                "tcp_keepalives_count": "3",
                "jit": "off",
            },
        )
        try:
            self._generation = await read_generation(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def close(self) -> None:
        if self._connection is not None and not self._connection.is_closed():
            async with self._lock:
                await self._connection.close(timeout=CONNECT_TIMEOUT_S)


async def _write(
    connection: asyncpg.Connection, events: Sequence[Event], *, contested: bool
) -> dict[bytes, Outcome]:
    # In the order of the index: writers who all go the same way do not deadlock.
    ordered = sorted(events, key=lambda event: (event.occurred_at, event.event_id))
    attempt = _insert if contested else _copy_or_insert
    try:
        return await attempt(connection, ordered)
    except DeadlockDetectedError:
        return await attempt(connection, ordered)


async def _copy_or_insert(
    connection: asyncpg.Connection, events: Sequence[Event]
) -> dict[bytes, Outcome]:
    try:
        return await _copy(connection, events)
    except UniqueViolationError:
        pass  # some rows are there already: the database says which
    except PostgresError as error:
        if not _blames_a_row(error):
            raise
    except ValueError:
        pass  # a text without an encoding: its row is found like any other culprit
    return await _insert(connection, events)


async def _copy(connection: asyncpg.Connection, events: Sequence[Event]) -> dict[bytes, Outcome]:
    stable = [event for event in events if event.has_stable_id]
    if not stable:
        await _copy_rows(connection, events)
        return {event.event_id: Outcome.WRITTEN for event in events}
    async with connection.transaction():
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
        source=encode_rows(events),  # type: ignore[arg-type] # a buffer is taken, if not declared
        columns=COLUMNS,
        format="binary",
    )


async def _insert(connection: asyncpg.Connection, events: Sequence[Event]) -> dict[bytes, Outcome]:
    """Insert what is not there yet; a row that the database blames costs no other its place."""
    outcomes = await _insert_halving(connection, events)
    if Outcome.REFUSED in outcomes.values() and Outcome.WRITTEN not in outcomes.values():
        refused = next(e for e in events if outcomes[e.event_id] is Outcome.REFUSED)
        await _try_harmless(connection, refused)
    return outcomes


async def _insert_halving(
    connection: asyncpg.Connection, events: Sequence[Event]
) -> dict[bytes, Outcome]:
    try:
        records = await connection.fetch(
            _INSERT, *as_arrays(events), [event.has_stable_id for event in events]
        )
    except PostgresError as error:
        if not _blames_a_row(error):
            raise
        if len(events) == 1:
            log.warning("the database refuses an event", extra={"sqlstate": error.sqlstate})
            return {events[0].event_id: Outcome.REFUSED}
        middle = len(events) // 2
        first = await _insert_halving(connection, events[:middle])
        return first | await _insert_halving(connection, events[middle:])
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
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.fetch(_INSERT, *as_arrays([harmless]), [harmless.has_stable_id])
    finally:
        await transaction.rollback()


def _blames_a_row(error: PostgresError) -> bool:
    """Whether the server refuses the data itself; everything else may succeed at a retry."""
    state = error.sqlstate or ""
    return (state[:2] in ("22", "23") and state != "23505") or state == "54000"
