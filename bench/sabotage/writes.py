"""Sabotages of the write: COPY, INSERT, poison events, stable IDs, columns."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import msgspec
from asyncpg.exceptions import PostgresError

from app.event import Event, Outcome
from bench.sabotage.sabotage import Found, Sabotage, patch
from bench.testbed.deliveries import EventKind
from sinks.timescale import session as sessions
from sinks.timescale import sink as sinks
from sinks.timescale import statements, writes
from sinks.timescale.encoding import as_arrays, encode_rows
from sinks.timescale.errors import Cause, classify
from sinks.timescale.session import Session

# Of every day of a short run. A row without a chunk is inserted with ON CONFLICT, which fails
# without the unique index; the others are copied.
_CHUNKS = """
INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token,
                    event_type, properties)
SELECT gen_random_uuid(), day, day, '', '', '', '', '{}'
FROM generate_series('2024-02-18 12:00Z', '2024-03-01 12:00Z', interval '1 day') AS day
"""
# A foreign trigger that leaves out every fifth row.
_SWALLOWS = (
    """
    CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF random() < 0.2 THEN RETURN NULL; END IF;
        RETURN NEW;
    END $$
    """,
    "CREATE TRIGGER swallow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION swallow()",
)
FOREIGN_INDEX = (
    "CREATE UNIQUE INDEX ON events "
    "(occurred_at, app_token, event_type, country, (properties ->> 'currency'))"
)
# The verdicts that a database of this kind earns the real gateway too.
FAILING = (Found.STUCK, Found.FAILED)
# The log is written late, and a commit of the gateway does not wait for it.
_WRITTEN_LATE = ("ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()")
_WEAK = "SET synchronous_commit = off"
_FLUSHED = ["redis_flushed"] * 2
_REDELIVERED = {EventKind.REDELIVERED: 600}
_STABLE = {EventKind.STABLE: 2_000}
_HOUR = timedelta(hours=1)

Outcomes = dict[bytes, Outcome]

copy_rows, enter_stable = statements._copy_rows, statements._enter_stable  # noqa: SLF001 - to be sabotaged
copy_events, insert_events = statements.copy_events, statements.insert_events
write_one = writes.write_one


def _all(events: Sequence[Event], outcome: Outcome) -> Outcomes:
    return {event.event_id: outcome for event in events}


def _count_not_compared() -> None:
    async def copy(session: Session, events: Sequence[Event]) -> int:
        await copy_rows(session, events)
        return len(events)

    patch(statements, "_copy_rows", copy)


def _target_not_named() -> None:
    def found(events: Sequence[Event], _: Collection[bytes], outcome: Outcome) -> Outcomes:
        return _all(events, outcome)

    insert: str = vars(statements)["_INSERT"]
    patch(statements, "_INSERT", insert.replace("(occurred_at, event_id) DO", "DO"))
    patch(statements, "_by_presence", found)


def copy_fails_as(cause: Cause, outcome: Outcome) -> Callable[[], None]:
    """Return a patch that gives a whole batch one outcome after a failed COPY."""

    async def copy(session: Session, events: Sequence[Event]) -> Outcomes:
        try:
            return await copy_events(session, events)
        except PostgresError as error:
            if classify(error).cause is not cause:
                raise
        return _all(events, outcome)

    return partial(patch, writes, "copy_events", copy)


def _insert_reports_written() -> None:
    async def insert(session: Session, events: Sequence[Event]) -> Outcomes:
        outcomes = await insert_events(session, events)
        is_known = Outcome.DUPLICATE
        return {id_: Outcome.WRITTEN if o is is_known else o for id_, o in outcomes.items()}

    patch(writes, "insert_events", insert)


def _locked_is_duplicate() -> None:
    async def write(session: Session, event: Event) -> Outcome:
        try:
            return await write_one(session, event)
        except PostgresError as error:
            if classify(error).cause is not Cause.LOCKED:
                raise
        return Outcome.DUPLICATE

    patch(sinks, "write_one", write)


def _stable_ids_apart() -> None:
    @asynccontextmanager
    async def none(_: Session, **__: object) -> AsyncIterator[None]:
        yield

    patch(statements, "transaction", none)
    patch(statements, "unit", none)


def _stable_ids_not_entered() -> None:
    async def enter(_: Session, __: Sequence[Event]) -> set[bytes]:
        return set()

    patch(statements, "_enter_stable", enter)


def _stored_otherwise(change: Callable[[Event], dict[str, object]]) -> Callable[[], None]:
    """Return a patch that changes each event on its way into the table."""

    def changed(events: Sequence[Event]) -> list[Event]:
        return [msgspec.structs.replace(event, **change(event)) for event in events]

    def apply() -> None:
        patch(statements, "encode_rows", lambda events: encode_rows(changed(events)))
        patch(statements, "as_arrays", lambda events: as_arrays(changed(events)))

    return apply


SABOTAGES = (
    Sabotage(
        "no-unique-index", "A unique index on `(occurred_at, event_id)` refuses a second row.",
        Found.DOUBLED, faults=_FLUSHED,
        statements=[_CHUNKS, "DELETE FROM events", "DROP INDEX events_occurred_at_event_id"],
    ),
    Sabotage(
        "conflict-is-duplicate", "After a conflict the database decides row by row.",
        Found.LOST, copy_fails_as(Cause.DUPLICATE, Outcome.DUPLICATE), _FLUSHED,
        shares=_REDELIVERED,
    ),
    Sabotage(
        "insert-reports-written", "Row by row, written or duplicate",
        Found.LIED, _insert_reports_written, _FLUSHED, shares=_REDELIVERED,
    ),
    Sabotage(
        "conflict-target-not-named", "The conflict target is named.",
        Found.LOST, _target_not_named, statements=[FOREIGN_INDEX], unavoidable=FAILING,
    ),
    Sabotage(
        "copy-count-not-compared", "The number that COPY reports is compared.",
        Found.LOST, _count_not_compared, statements=_SWALLOWS, unavoidable=FAILING,
    ),
    Sabotage(
        "locked-is-duplicate", "A lock that is not given in time is a 500.",
        Found.LIED, _locked_is_duplicate, ["gateway_frozen_before_commit"] * 3,
        shares={EventKind.CONTESTED: 1_000, EventKind.STABLE: 600},
    ),
    Sabotage(
        "stable-ids-apart", "Stable IDs are entered in the same transaction.",
        Found.LOST, _stable_ids_apart, ["connection_cut_in_copy"] * 2, shares=_STABLE,
    ),
    Sabotage(
        "stable-ids-not-entered", "Stable IDs are entered in a table of their own.",
        Found.DOUBLED, _stable_ids_not_entered, _FLUSHED, shares=_STABLE,
    ),
    Sabotage(
        "commit-not-durable", "`synchronous_commit` is raised to `on`.",
        Found.LOST, partial(patch, sessions, "DURABLE", _WEAK), ["database_stopped"] * 3,
        statements=_WRITTEN_LATE,
    ),
    Sabotage(
        "wrong-received-at", "`received_at` is the time of arrival.",
        Found.LOST, _stored_otherwise(lambda event: {"received_at": event.received_at - _HOUR}),
    ),
    Sabotage(
        "column-left-out", "Every identifier that is sent is stored.",
        Found.LOST, _stored_otherwise(lambda _: {"gps_adid": None}),
    ),
)  # fmt: skip
