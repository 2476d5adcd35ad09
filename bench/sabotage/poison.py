"""Sabotages of poison events, which the database refuses for their data."""

from collections.abc import Sequence

import msgspec
from asyncpg.exceptions import PostgresError

from app import ingest
from app.dropped import encode_event
from app.event import Event, Outcome
from bench.sabotage.sabotage import Found, Sabotage, patch
from bench.sabotage.writes import FAILING, FOREIGN_INDEX, copy_fails_as, write_one
from bench.testbed.deliveries import EventKind
from sinks.timescale import errors, writes
from sinks.timescale import sink as sinks
from sinks.timescale.errors import Cause, classify
from sinks.timescale.session import Session

# A foreign trigger that reports a full disk for every tenth row, at the begin of each second; never
# for the harmless row that proves a refusal, which has no country. A retry comes in between.
_FULL_FOR_SOME = (
    """
    CREATE FUNCTION full_for_some() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.country IS NOT NULL AND get_byte(uuid_send(NEW.event_id), 0) < 26
            AND extract(epoch FROM clock_timestamp())::numeric % 1 < 0.3
        THEN RAISE EXCEPTION 'no space' USING ERRCODE = '53100';
        END IF;
        RETURN NEW;
    END $$
    """,
    """
    CREATE TRIGGER full_for_some BEFORE INSERT ON events
    FOR EACH ROW EXECUTE FUNCTION full_for_some()
    """,
)

copy_again = writes._copy_again  # noqa: SLF001 - to be sabotaged


def _any_class_blames_a_row() -> None:
    by_class: dict[str, Cause] = vars(errors)["_BY_CLASS"]
    patch(errors, "_BY_CLASS", by_class | {"53": Cause.ROW})


def _key_blames_a_row() -> None:
    by_state: dict[str, Cause] = vars(errors)["_BY_STATE"]
    patch(errors, "_BY_STATE", by_state | {"23505": Cause.ROW})


def _refused_fails_all() -> None:
    async def fail(
        session: Session, events: Sequence[Event], failure: PostgresError
    ) -> dict[bytes, Outcome]:
        if classify(failure).cause is Cause.ROW and len(events) > 1:
            raise LookupError("one of them is refused") from failure
        return await copy_again(session, events, failure)

    patch(writes, "_copy_again", fail)


def _forgets_stable_id() -> None:
    def encode(event: Event) -> bytes:
        return encode_event(msgspec.structs.replace(event, has_stable_id=False))

    patch(ingest, "encode_event", encode)


def _refused_without_proof() -> None:
    async def refuse(_: Session, __: Event) -> Outcome:
        return Outcome.REFUSED

    patch(writes, "_refused_or_written", refuse)


def _any_error_refuses() -> None:
    async def write(session: Session, event: Event) -> Outcome:
        try:
            return await write_one(session, event)
        except PostgresError:
            return Outcome.REFUSED

    patch(sinks, "write_one", write)


def _never_refuses() -> None:
    async def write(session: Session, event: Event) -> Outcome:
        outcome = await write_one(session, event)
        if outcome is Outcome.REFUSED:
            raise LookupError("no final answer")
        return outcome

    patch(sinks, "write_one", write)


SABOTAGES = (
    Sabotage(
        "poison-blames-neighbours", "A refused row is found by its name or by halving.",
        Found.LIED, copy_fails_as(Cause.ROW, Outcome.REFUSED), shares={EventKind.POISON: 60},
    ),
    Sabotage(
        "refused-row-fails-the-batch", "One refused event fails no other.",
        Found.FAILED, _refused_fails_all, shares={EventKind.POISON: 200},
    ),
    Sabotage(
        "refused-event-forgets-its-stable-id", "A refused event is kept whole.",
        Found.LOST, _forgets_stable_id, shares={EventKind.POISON: 200}, callbacks=600,
    ),
    Sabotage(
        "refused-without-proof", "`refused` only if a harmless row was accepted",
        Found.LIED, _refused_without_proof, ["schema_broken"],
    ),
    Sabotage(
        "never-refuses", "A refused event is answered `dropped`.",
        Found.STUCK, _never_refuses, callbacks=600,
    ),
    Sabotage(
        "any-error-refuses", "All other errors are 500.",
        Found.LIED, _any_error_refuses, ["table_locked", "database_full"],
        shares={EventKind.CONTESTED: 1_000},
    ),
    Sabotage(
        "other-class-blames-a-row", "Only SQLSTATE 22, 23 and 54000 blame a row.",
        Found.LIED, _any_class_blames_a_row, statements=_FULL_FOR_SOME, unavoidable=FAILING,
    ),
    Sabotage(
        "foreign-index-blames-a-row", "SQLSTATE 23505 blames no row.",
        Found.LIED, _key_blames_a_row, statements=[FOREIGN_INDEX], unavoidable=FAILING,
    ),
)  # fmt: skip
