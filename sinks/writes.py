"""How events get into the table: one COPY, and INSERTs where the database must decide."""

import logging
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID

import msgspec
from asyncpg.exceptions import (
    DataError,
    DeadlockDetectedError,
    LockNotAvailableError,
    PostgresError,
    UniqueViolationError,
)

from app.event import Event, Outcome
from sinks.encoding import COLUMNS, TYPES, as_arrays, encode_rows
from sinks.session import Session, patience, statement, transaction

# How long a write waits for a row or a chunk that somebody else is writing: a batch, and the
# search for what holds a batch up. A healthy writer is done in milliseconds; a frozen one must
# not take its twins' neighbours with it.
BATCH_LOCK_TIMEOUT_S = 0.1
SEARCH_LOCK_TIMEOUT_S = 0.01
# So many rows of a batch are left out one after another, when the server names them as refused.
NAMED_MAX = 5

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

_LINE = re.compile(r"COPY events, line ([0-9]+)")

Attempt = Callable[[Session, Sequence[Event]], Awaitable[dict[bytes, Outcome]]]

log = logging.getLogger(__name__)


class _RowRefused(PostgresError):
    """The server refuses a COPY for the data of a row, and says which."""

    def __init__(self, error: PostgresError, event: Event) -> None:
        super().__init__(str(error))
        self.event = event


async def write_batch(connection: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    """Write all events at once, or else all but those that must be written alone."""
    # In the order of the index: writers who all go the same way do not deadlock.
    ordered = sorted(events, key=lambda event: (event.occurred_at, event.event_id))
    try:
        return await _copy_around(connection, ordered)
    except UnicodeEncodeError:
        pass  # an adapter's mistake: the row is found like any other culprit
    except PostgresError as error:
        # Some rows are there already, or many are at fault, or locked: the search tells which.
        if not isinstance(error, UniqueViolationError) and not _blames_a_row(error):
            raise
    async with patience(connection, SEARCH_LOCK_TIMEOUT_S, then_s=BATCH_LOCK_TIMEOUT_S):
        return await _insert_halving(connection, ordered)


async def _copy_around(connection: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    """Copy all events but a few that the server names as refused: these are CONTESTED."""
    rest = list(events)
    named: dict[bytes, Outcome] = {}
    while rest:
        try:
            return named | await _once_more_after_deadlock(_copy, connection, rest)
        except _RowRefused as refused:
            if len(named) == NAMED_MAX:
                raise
            named[refused.event.event_id] = Outcome.CONTESTED
            rest.remove(refused.event)
    return named


async def write_alone(connection: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    """Insert events one by one, each with its own fate; raises where that is not decided."""
    outcomes: dict[bytes, Outcome] = {}
    for event in events:
        try:
            outcomes |= await _once_more_after_deadlock(_insert, connection, [event])
        except PostgresError as error:
            if not _refuses_data(error):
                raise
            outcomes[event.event_id] = await _refused_or_written(connection, event)
    return outcomes


async def _refused_or_written(connection: Session, refused: Event) -> Outcome:
    """Tell an event that the database will never take from a fault of the schema, which raises.

    The event is tried once more behind a harmless one, without anything that its sender chose. In
    one transaction, whose lock on the table keeps everyone from changing the schema in between.
    """
    harmless = msgspec.structs.replace(
        refused, event_id=os.urandom(16), user_id=None, adid=None, idfa=None, gps_adid=None,
        os_name=None, country=None, properties={},
    )  # fmt: skip
    harmless_taken = False
    try:
        async with transaction(connection, end="ROLLBACK"):
            await _insert(connection, [harmless])
            harmless_taken = True
            await _insert(connection, [refused])
    except PostgresError as error:
        if harmless_taken and _refuses_data(error):
            log.warning("the database refuses an event", extra={"sqlstate": error.sqlstate})
            return Outcome.REFUSED
        raise
    # The schema was mended since the first attempt.
    return (await _insert(connection, [refused]))[refused.event_id]


async def _once_more_after_deadlock(
    attempt: Attempt, connection: Session, events: Sequence[Event]
) -> dict[bytes, Outcome]:
    try:
        return await attempt(connection, events)
    except DeadlockDetectedError:
        return await attempt(connection, events)


async def _copy(connection: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    # Behind PgBouncer (1.24; its pull request 1470) a COPY that fails may keep the connection to
    # the server from all others for good.
    if connection.is_pooled:
        return await _insert(connection, events)
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


async def _copy_rows(connection: Session, events: Sequence[Event]) -> None:
    try:
        await connection.copy_to_table(
            "events",
            # Mere bytes would be taken for the name of a file. The type is not declared, but taken.
            source=memoryview(encode_rows(events)),  # type: ignore[arg-type]
            columns=COLUMNS,
            format="binary",
        )
    except PostgresError as error:
        line = _LINE.match(error.context or "")
        if line is None or not _refuses_data(error):
            raise
        raise _RowRefused(error, events[int(line[1]) - 1]) from None


async def _insert_halving(connection: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
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


async def _insert(connection: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    try:
        arrays = as_arrays(events)
    except UnicodeEncodeError as error:  # an adapter's mistake; the server would say the same
        raise DataError(str(error)) from None
    stable = [event.has_stable_id for event in events]
    async with statement(connection):
        records = await connection.fetch(_INSERT, *arrays, stable)
    written = {record[0].bytes for record in records}
    return {
        event.event_id: Outcome.WRITTEN if event.event_id in written else Outcome.DUPLICATE
        for event in events
    }


def _refuses_data(error: PostgresError) -> bool:
    """Whether a row is refused for what is in it."""
    state = error.sqlstate or ""
    return (state[:2] in ("22", "23") and state != "23505") or state == "54000"


def _blames_a_row(error: PostgresError) -> bool:
    """Whether some rows are the cause: their data, or the locks of others on them."""
    return _refuses_data(error) or isinstance(error, _RowRefused | LockNotAvailableError)
