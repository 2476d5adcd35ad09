"""One attempt at a write: a COPY of all events, or an INSERT of those that are not there yet."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from uuid import UUID

from asyncpg.exceptions import PostgresError

from app.event import Event, Outcome
from sinks.timescale.encoding import COLUMNS, TYPES, as_arrays, encode_rows
from sinks.timescale.errors import RowRefused, RowSwallowed, classify
from sinks.timescale.search import find_rows, find_stable
from sinks.timescale.session import Session, transaction, unit

_NAMES = ", ".join(COLUMNS)
_ARRAYS = ", ".join(f"${place}::{type_}[]" for place, type_ in enumerate(TYPES, 1))
_COPY = f"COPY events ({_NAMES}) FROM STDIN (FORMAT binary)"
# With a named target, a foreign unique index cannot make an event a duplicate.
_INSERT = f"""
INSERT INTO events ({_NAMES}) SELECT * FROM unnest({_ARRAYS})
ON CONFLICT (occurred_at, event_id) DO NOTHING RETURNING event_id
"""  # noqa: S608 - made of constants
_ENTER_STABLE = """
INSERT INTO stable_events (event_id, occurred_at)
SELECT * FROM unnest($1::uuid[], $2::timestamptz[])
ON CONFLICT (event_id) DO NOTHING RETURNING event_id
"""

_event_id, _has_stable_id = attrgetter("event_id"), attrgetter("has_stable_id")


async def copy_events(session: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    """Write all events with one COPY; one refused row fails it.

    An event whose stable ID was entered before is a DUPLICATE. Raises RowRefused for a row that
    the server names.
    """
    # PgBouncer 1.24 may lose the server connection of a COPY that failed (its pull request 1470).
    if session.is_pooled:
        return await insert_events(session, events)
    if True not in map(_has_stable_id, events):
        copied = await _copy_rows(session, events)
        if copied == len(events):
            return dict.fromkeys(map(_event_id, events), Outcome.WRITTEN)
        return _by_arrival(events, await find_rows(session, events), copied)
    async with transaction(session):
        known = await _enter_stable(session, events)
        new = [event for event in events if event.event_id not in known]
        if new and await _copy_rows(session, new) != len(new):
            raise RowSwallowed("COPY has left rows out")
    return {
        event.event_id: Outcome.DUPLICATE if event.event_id in known else Outcome.WRITTEN
        for event in events
    }


async def insert_events(session: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    """Insert the events that are not there, and search for the rest: only a row is a duplicate."""
    # A stable ID and its row are there together or not at all.
    is_whole = any(event.has_stable_id for event in events)
    async with unit(session, is_whole=is_whole):
        known = await _enter_stable(session, events)
        new = [event for event in events if event.event_id not in known]
        records = await session.fetch(_INSERT, *as_arrays(new)) if new else []
        written: set[bytes] = {record[0].bytes for record in records}
        rest = [event for event in new if event.event_id not in written]
        outcomes = dict.fromkeys(known, Outcome.DUPLICATE)
        outcomes |= dict.fromkeys(written, Outcome.WRITTEN)
        if rest:
            rows = await find_rows(session, rest)
            outcomes |= _by_presence(rest, rows, Outcome.DUPLICATE)
            is_undecided = Outcome.CONTESTED in outcomes.values()
            if is_undecided and (session.is_in_transaction() or len(events) == 1):
                raise RowSwallowed("a row is neither written nor there")
    return outcomes


async def _copy_rows(session: Session, events: Sequence[Event]) -> int:
    """Return the number of rows that the server reports."""
    try:
        status = await session.copy(_COPY, encode_rows(events))
    except PostgresError as error:
        row = classify(error).row
        if row is None:
            raise
        raise RowRefused(error, events[row]) from None
    return int(status.removeprefix("COPY "))


async def _enter_stable(session: Session, events: Sequence[Event]) -> set[bytes]:
    """Enter the stable IDs, and return the IDs that were entered before."""
    stable = [event for event in events if event.has_stable_id]
    if not stable:
        return set()
    records = await session.fetch(
        _ENTER_STABLE,
        [UUID(bytes=event.event_id) for event in stable],
        [event.occurred_at for event in stable],
    )
    entered: set[bytes] = {record[0].bytes for record in records}
    rest = [event for event in stable if event.event_id not in entered]
    known = await find_stable(session, rest) if rest else set()
    if len(known) < len(rest):
        raise RowSwallowed("stable IDs are neither entered nor there")
    return known


def _by_arrival(
    events: Sequence[Event], rows: Mapping[bytes, datetime], copied: int
) -> dict[bytes, Outcome]:
    """Return WRITTEN for each event with a row of its own arrival, and DUPLICATE for other rows.

    Rows that were not copied were there before: a trigger has left their events out.
    """
    own = {event.event_id for event in events if rows.get(event.event_id) == event.received_at}
    outcomes = _by_presence(events, rows, Outcome.DUPLICATE)
    # Another delivery may have arrived in the same microsecond: then no row is known to be ours.
    if len(own) == copied:
        outcomes |= dict.fromkeys(own, Outcome.WRITTEN)
    return outcomes


def _by_presence(
    events: Sequence[Event], rows: Collection[bytes], found: Outcome
) -> dict[bytes, Outcome]:
    """Return `found` for each event that has a row, and CONTESTED for the others."""
    return {
        event.event_id: found if event.event_id in rows else Outcome.CONTESTED for event in events
    }
