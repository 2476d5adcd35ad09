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
from sinks.timescale.encoding import COLUMNS, TYPES, as_arrays, encode_rows
from sinks.timescale.search import find_rows, find_stable
from sinks.timescale.session import Session, patience, transaction, unit

# How long a write waits for a row or a chunk that somebody else is writing: a batch, and the
# search for what holds a batch up. A healthy writer is done in milliseconds; a frozen one must
# not take its twins' neighbours with it.
BATCH_LOCK_TIMEOUT_S = 0.1
SEARCH_LOCK_TIMEOUT_S = 0.01
# So many rows of a batch are left out one after another, when the server names them as refused.
NAMED_MAX = 5

_NAMES = ", ".join(COLUMNS)
_ARRAYS = ", ".join(f"${place}::{type_}[]" for place, type_ in enumerate(TYPES, 1))

# The target is named: an index of somebody else's must not make an event a duplicate.
_INSERT = f"""
INSERT INTO events ({_NAMES}) SELECT * FROM unnest({_ARRAYS})
ON CONFLICT (occurred_at, event_id) DO NOTHING RETURNING event_id
"""  # noqa: S608 - made of constants
_ENTER_STABLE = """
INSERT INTO stable_events (event_id, occurred_at)
SELECT * FROM unnest($1::uuid[], $2::timestamptz[])
ON CONFLICT (event_id) DO NOTHING RETURNING event_id
"""

_LINE = re.compile(r"COPY events, line ([0-9]+)")

Attempt = Callable[[Session, Sequence[Event]], Awaitable[dict[bytes, Outcome]]]

log = logging.getLogger(__name__)


class _RowRefused(PostgresError):
    """The server refuses a COPY for the data of a row, and says which."""

    def __init__(self, error: PostgresError, event: Event) -> None:
        super().__init__(str(error))
        self.event = event


class _RowSwallowed(PostgresError):
    """The server has taken a row, and it is not there: somebody's trigger has left it out."""


async def write_batch(connection: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    """Write all events at once, or else all but those that must be written alone."""
    # In the order of the index: writers who all go the same way do not deadlock.
    ordered = sorted(events, key=lambda event: (event.occurred_at, event.event_id))
    try:
        return await _copy_around(connection, ordered)
    except UnicodeEncodeError:
        pass  # an adapter's mistake: the row is found like any other culprit
    except PostgresError as error:
        # Some rows are there already, or many are at fault, or locked: halving tells which.
        if not _blames_a_row(error):
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
    if not any(event.has_stable_id for event in events):
        if await _copy_rows(connection, events):
            return {event.event_id: Outcome.WRITTEN for event in events}
        # Those that are there are ours: had they been there before, the index had refused them.
        return await _search(connection, events, is_ours=True)
    async with transaction(connection):
        known = await _enter_stable(connection, events)
        new = [event for event in events if event.event_id not in known]
        if new and not await _copy_rows(connection, new):
            raise _RowSwallowed("COPY has left rows out")
    return {
        event.event_id: Outcome.DUPLICATE if event.event_id in known else Outcome.WRITTEN
        for event in events
    }


async def _enter_stable(connection: Session, events: Sequence[Event]) -> set[bytes]:
    """Enter the stable IDs, where there are any; returns those that were there before."""
    stable = [event for event in events if event.has_stable_id]
    if not stable:
        return set()
    records = await connection.fetch(
        _ENTER_STABLE,
        [UUID(bytes=event.event_id) for event in stable],
        [event.occurred_at for event in stable],
    )
    entered = {record[0].bytes for record in records}
    rest = [event for event in stable if event.event_id not in entered]
    known = await find_stable(connection, rest) if rest else set()
    if len(known) < len(rest):
        raise _RowSwallowed("stable IDs are neither entered nor there")
    return known


async def _copy_rows(connection: Session, events: Sequence[Event]) -> bool:
    """Return whether the server has as many rows more as it was sent."""
    try:
        status = await connection.copy_to_table(
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
    return bool(status == f"COPY {len(events)}")


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
    """Insert what is not there, and search for the rest: only what is found is a duplicate."""
    # A stable ID and its row are there together or not at all.
    is_whole = any(event.has_stable_id for event in events)
    try:
        async with unit(connection, is_whole=is_whole):
            known = await _enter_stable(connection, events)
            new = [event for event in events if event.event_id not in known]
            records = await connection.fetch(_INSERT, *as_arrays(new)) if new else []
            written = {record[0].bytes for record in records}
            rest = [event for event in new if event.event_id not in written]
            outcomes = dict.fromkeys(known, Outcome.DUPLICATE)
            outcomes |= dict.fromkeys(written, Outcome.WRITTEN)
            if rest:
                outcomes |= await _search(connection, rest, is_ours=False)
                if Outcome.CONTESTED in outcomes.values() and (
                    connection.is_in_transaction() or len(events) == 1
                ):
                    raise _RowSwallowed("a row is neither written nor there")
    except UnicodeEncodeError as error:  # an adapter's mistake; the server would say the same
        raise DataError(str(error)) from None
    return outcomes


async def _search(
    connection: Session, events: Sequence[Event], *, is_ours: bool
) -> dict[bytes, Outcome]:
    """Tell what became of rows that the server does not say it has written."""
    found = dict.fromkeys(
        await find_rows(connection, events), Outcome.WRITTEN if is_ours else Outcome.DUPLICATE
    )
    return {event.event_id: found.get(event.event_id, Outcome.CONTESTED) for event in events}


def _refuses_data(error: PostgresError) -> bool:
    """Whether a row is refused for what is in it."""
    state = error.sqlstate or ""
    return (state[:2] in ("22", "23") and state != "23505") or state == "54000"


def _blames_a_row(error: PostgresError) -> bool:
    """Whether some rows are the cause: their data, the locks of others on them, or an index.

    The last may be somebody else's: then only the row that it refuses raises, when it is alone.
    """
    return _refuses_data(error) or isinstance(
        error, _RowRefused | _RowSwallowed | LockNotAvailableError | UniqueViolationError
    )
