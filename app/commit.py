"""Exactly once: fold the batch, claim it, write it, then settle or release the claims."""

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter

from app.claims import Claim, Claims
from app.event import Event, Outcome
from app.telemetry.metrics import (
    BATCH_EVENTS,
    CLAIM_SECONDS,
    COMMIT_SECONDS,
    SETTLE_SECONDS,
    WRITE_SECONDS,
)
from app.telemetry.outcomes import count_events
from sinks import Sink

_EVENT_ID, _RECEIVED_AT = attrgetter("event_id"), attrgetter("received_at")

log = logging.getLogger(__name__)


async def commit(
    events: Sequence[Event],
    claims: Claims,
    sink: Sink,
    *,
    now: Callable[[], datetime],
    age_max: timedelta,
) -> Sequence[Outcome]:
    """Commit one batch, count it, and return the outcome of each event, in order.

    Repeats of one event are folded into the first. A CONTESTED event goes on to
    `commit_contested`; a FAILED one may be retried. An event that arrived longer than `age_max`
    ago is TOO_LATE: its row could become visible later than readers look back.
    """
    BATCH_EVENTS.observe(len(events))
    with COMMIT_SECONDS.time():
        unique = dict(zip(map(_EVENT_ID, reversed(events)), reversed(events), strict=True))
        with CLAIM_SECONDS.time():
            answers = await claims.claim(list(unique))
        outcomes: dict[bytes, Outcome] = {}
        if answers.count(Claim.HELD) < len(unique):
            outcomes = _unclaimed(unique, answers)
        held = list(unique.values())
        if outcomes:
            held = [event for id_, event in unique.items() if id_ not in outcomes]
        late: Sequence[Event] = []
        # After the claim, which may have taken long, and directly before the write.
        if held and min(map(_RECEIVED_AT, held)) < (oldest := now() - age_max):
            late = [event for event in held if event.received_at < oldest]
            held = [event for event in held if event.received_at >= oldest]
        if held:
            outcomes |= await _write(held, claims, sink)
        if late:
            outcomes |= await _give_up(late, claims)
    unfolded: Sequence[Outcome] = list(map(outcomes.__getitem__, map(_EVENT_ID, events)))
    if len(unique) < len(events):
        unfolded = _unfold(events, outcomes)
    count_events(events, unfolded)
    return unfolded


async def commit_contested(
    event: Event,
    claims: Claims,
    sink: Sink,
    *,
    now: Callable[[], datetime],
    age_max: timedelta,
) -> Outcome:
    """Commit one contested event, count it, and return its outcome, without a claim."""
    try:
        if event.received_at < now() - age_max:
            _log_late(1)
            outcome = Outcome.TOO_LATE
        else:
            with WRITE_SECONDS.time():
                outcome = await sink.write_contested(event)
    except Exception as error:  # noqa: BLE001 - after any error a retry is safe
        _log_failure(1, error)
        outcome = Outcome.FAILED
    finally:
        # Released even after a write: the connection for contested events may lead to another
        # database than the claims belong to. The next delivery finds the row, and settles.
        with SETTLE_SECONDS.time():
            await claims.release([event.event_id])
    count_events([event], [outcome])
    return outcome


def _unclaimed(unique: Mapping[bytes, Event], answers: Sequence[Claim]) -> dict[bytes, Outcome]:
    """Return the outcomes of the events without a held claim."""
    return {
        id_: Outcome.DUPLICATE if answer is Claim.SEEN else Outcome.CONTESTED
        for id_, answer in zip(unique, answers, strict=True)
        if answer is not Claim.HELD
    }


async def _write(events: Sequence[Event], claims: Claims, sink: Sink) -> Mapping[bytes, Outcome]:
    """Write claimed events; settle the committed ones and release the refused ones."""
    ids = list(map(_EVENT_ID, events))
    try:
        with WRITE_SECONDS.time():
            outcomes = await sink.write(events)
    except asyncio.CancelledError:
        await claims.release(ids)
        raise
    except Exception as error:  # noqa: BLE001 - after any error a retry is safe
        await claims.release(ids)
        _log_failure(len(ids), error)
        return dict.fromkeys(ids, Outcome.FAILED)
    by_id = dict(zip(ids, outcomes, strict=True))
    with SETTLE_SECONDS.time():
        committed, refused = ids, []
        if outcomes.count(Outcome.WRITTEN) < len(ids):
            refused = [id_ for id_ in ids if by_id[id_] is Outcome.REFUSED]
            committed = [id_ for id_ in ids if by_id[id_] in (Outcome.WRITTEN, Outcome.DUPLICATE)]
        await claims.settle(committed)
        if refused:
            await claims.release(refused)
    return by_id


async def _give_up(events: Sequence[Event], claims: Claims) -> Mapping[bytes, Outcome]:
    """Release claimed events that are too late to be written."""
    ids = list(map(_EVENT_ID, events))
    _log_late(len(ids))
    await claims.release(ids)
    return dict.fromkeys(ids, Outcome.TOO_LATE)


def _unfold(events: Sequence[Event], outcomes: dict[bytes, Outcome]) -> Sequence[Outcome]:
    """Return the outcome of each event; repeats of a written event are duplicates."""
    unfolded = []
    for event in events:
        unfolded.append(outcome := outcomes[event.event_id])
        if outcome is Outcome.WRITTEN:
            outcomes[event.event_id] = Outcome.DUPLICATE
    return unfolded


def _log_late(events: int) -> None:
    log.error("events not written: they have waited too long", extra={"events": events})


def _log_failure(events: int, error: Exception) -> None:
    # Only the first line: PostgreSQL quotes the row in the following ones.
    detail = str(error).partition("\n")[0]
    log.error(
        "batch failed", extra={"events": events, "error": type(error).__name__, "detail": detail}
    )
