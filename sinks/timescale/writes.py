"""The ladder of a write: from one COPY of a batch down to one INSERT of an event.

    cause of the failure      after a COPY               after an INSERT   after that of one event
    ROW, named by the server  COPY without that row                        REFUSED, if proven
    ROW, not named            INSERT                     halves            REFUSED, if proven
    DUPLICATE                 INSERT                     halves            raised: a foreign index
    LOCKED, SWALLOWED         INSERT                     halves            raised
    DEADLOCK                  again, once                again, once       again, once
    OTHER                     raised                     raised            raised

In a batch, an event that cannot be written with others is CONTESTED, and gets an INSERT of its
own later: the last column.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from operator import attrgetter

import msgspec
from asyncpg.exceptions import PostgresError

from app.event import Event, Outcome
from sinks.timescale.chunks import Chunks
from sinks.timescale.errors import BLAMES_ROWS, Cause, RowRefused, classify
from sinks.timescale.session import Session, lock_timeout, transaction
from sinks.timescale.statements import copy_events, insert_events

# The wait for a row or a chunk that another writer has locked: of a batch, and of its halves. A
# healthy writer needs milliseconds; a frozen one must not delay the events beside its own.
BATCH_LOCK_TIMEOUT_S = 0.1
HALVES_LOCK_TIMEOUT_S = 0.01
# The most rows of a batch that are left out one after another, when the server names them.
NAMED_MAX = 5

Attempt = Callable[[Session, Sequence[Event]], Awaitable[dict[bytes, Outcome]]]

log = logging.getLogger(__name__)

_in_order_of_the_index = attrgetter("occurred_at", "event_id")
_event_id = attrgetter("event_id")


async def write_batch(
    session: Session, events: Sequence[Event], chunks: Chunks
) -> dict[bytes, Outcome]:
    """Write all events that can be written together; the others are CONTESTED."""
    # Writers that all lock rows in one order do not deadlock.
    ordered, lacking = chunks.split(sorted(events, key=_in_order_of_the_index))
    outcomes = dict.fromkeys(map(_event_id, lacking), Outcome.CONTESTED)
    if not ordered:
        return outcomes
    try:
        return outcomes | await copy_events(session, ordered)
    except PostgresError as error:
        failure = error
    try:
        return outcomes | await _copy_again(session, ordered, failure)
    except PostgresError as error:
        if classify(error).cause not in BLAMES_ROWS:
            raise
    finally:
        del failure  # its traceback leads back to this frame, and so to all events
    async with lock_timeout(session, HALVES_LOCK_TIMEOUT_S, then_s=BATCH_LOCK_TIMEOUT_S):
        return outcomes | await _insert_by_halves(session, ordered)


async def write_one(session: Session, event: Event) -> Outcome:
    """Insert one event; raises where its outcome is not decided."""
    try:
        outcomes = await _again_after_deadlock(insert_events, session, [event])
    except PostgresError as error:
        if classify(error).cause is not Cause.ROW:
            raise
        return await _refused_or_written(session, event)
    return outcomes[event.event_id]


async def _copy_again(
    session: Session, events: Sequence[Event], failure: PostgresError
) -> dict[bytes, Outcome]:
    """Copy the events without the rows that the server names, or once more after a deadlock.

    The named events are CONTESTED. `failure` is that of the first COPY; raises the last one.
    """
    rest = list(events)
    named: dict[bytes, Outcome] = {}
    is_deadlock_over = False
    try:
        while True:
            if isinstance(failure, RowRefused) and len(named) < NAMED_MAX:
                named[failure.event.event_id] = Outcome.CONTESTED
                rest.remove(failure.event)
            elif classify(failure).cause is Cause.DEADLOCK and not is_deadlock_over:
                is_deadlock_over = True
            else:
                raise failure
            if not rest:
                return named
            try:
                return named | await copy_events(session, rest)
            except PostgresError as error:
                failure = error
    finally:
        del failure  # as in `write_batch`


async def _insert_by_halves(session: Session, events: Sequence[Event]) -> dict[bytes, Outcome]:
    """Insert the missing events; a row at fault, or locked, is left alone in the end: CONTESTED."""
    try:
        return await _again_after_deadlock(insert_events, session, events)
    except PostgresError as error:
        if classify(error).cause not in BLAMES_ROWS:
            raise
    if len(events) == 1:
        return {events[0].event_id: Outcome.CONTESTED}
    middle = len(events) // 2
    first = await _insert_by_halves(session, events[:middle])
    return first | await _insert_by_halves(session, events[middle:])


async def _refused_or_written(session: Session, refused: Event) -> Outcome:
    """Return REFUSED for an event that the database will never take; raises a fault of the schema.

    The proof is a harmless event, without anything that the sender chose: the database takes it
    and then refuses the other. Both are in one transaction, whose lock on the table keeps the
    schema as it is in between.
    """
    harmless = msgspec.structs.replace(
        refused, event_id=os.urandom(16), user_id=None, adid=None, idfa=None, gps_adid=None,
        os_name=None, country=None, properties={},
    )  # fmt: skip
    is_harmless_taken = False
    try:
        async with transaction(session, end="ROLLBACK"):
            await insert_events(session, [harmless])
            is_harmless_taken = True
            await insert_events(session, [refused])
    except PostgresError as error:
        if is_harmless_taken and classify(error).cause is Cause.ROW:
            log.warning("the database refuses an event", extra={"sqlstate": error.sqlstate})
            return Outcome.REFUSED
        raise
    # The schema was mended since the first attempt.
    return (await insert_events(session, [refused]))[refused.event_id]


async def _again_after_deadlock(
    attempt: Attempt, session: Session, events: Sequence[Event]
) -> dict[bytes, Outcome]:
    try:
        return await attempt(session, events)
    except PostgresError as error:
        if classify(error).cause is not Cause.DEADLOCK:
            raise
    return await attempt(session, events)
