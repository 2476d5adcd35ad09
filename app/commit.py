"""Exactly once: what becomes of a batch. Fold, claim, write, then settle or release."""

import asyncio
import logging
from collections import Counter
from collections.abc import Sequence

from app.buffer import WriteBuffer
from app.claims import Claim, Claims
from app.errors import Unavailable, WriteFailed
from app.event import DropReason, Event, Outcome
from app.telemetry import metrics
from sinks import Sink

_COUNTED = {
    Outcome.WRITTEN: (metrics.WRITTEN, None),
    Outcome.DUPLICATE: (metrics.DUPLICATE, None),
    Outcome.REFUSED: (metrics.DROPPED, DropReason.REFUSED.value),
}
_COMMITTED = (Outcome.WRITTEN, Outcome.DUPLICATE)


log = logging.getLogger(__name__)


async def commit(
    events: Sequence[Event], claims: Claims, sink: Sink
) -> Sequence[Outcome | WriteFailed]:
    """Commit one batch, and return what became of each event, in order.

    Repeats of one event become one. A CONTESTED event goes on to `commit_contested`; a failed
    one may be tried again.
    """
    metrics.BATCH_EVENTS.observe(len(events))
    with metrics.COMMIT_SECONDS.time():
        unique = {event.event_id: event for event in reversed(events)}
        with metrics.CLAIM_SECONDS.time():
            claimed = dict(zip(unique, await claims.claim(list(unique)), strict=True))
        outcomes: dict[bytes, Outcome | WriteFailed] = {
            event_id: Outcome.DUPLICATE if claim is Claim.SEEN else Outcome.CONTESTED
            for event_id, claim in claimed.items()
        }
        held = [event for event_id, event in unique.items() if claimed[event_id] is Claim.HELD]
        if held:
            outcomes |= await _write(held, claims, sink, contested=False)
    return _tell(events, outcomes)


async def commit_contested(
    events: Sequence[Event], claims: Claims, sink: Sink
) -> Sequence[Outcome | WriteFailed]:
    """Commit events that must be written alone: the database decides, without a claim."""
    return _tell(events, await _write(events, claims, sink, contested=True))


async def hand_over(event: Event, twins: WriteBuffer[Event, Outcome], claims: Claims) -> Outcome:
    """Give a CONTESTED event to the buffer of those that are written alone."""
    try:
        return await twins.submit(event, event.workspace_id)
    except Unavailable as error:
        await claims.release([event.event_id])
        metrics.count(metrics.FAILED, event.vendor, event.workspace_id, error.reason)
        raise WriteFailed(error.reason) from None


async def _write(
    events: Sequence[Event], claims: Claims, sink: Sink, *, contested: bool
) -> dict[bytes, Outcome | WriteFailed]:
    """Write, then settle what is committed and release what is not."""
    ids = [event.event_id for event in events]
    try:
        with metrics.WRITE_SECONDS.time():
            written = (
                [await sink.write_contested(event) for event in events]
                if contested
                else await sink.write(events)
            )
            outcomes = dict(zip(ids, written, strict=True))
    except asyncio.CancelledError:
        await claims.release(ids)
        raise
    except Exception as error:  # noqa: BLE001 - whatever it was, a retry is safe and wanted
        await claims.release(ids)
        log.error(
            "batch failed",
            # Only the first line: in those that follow PostgreSQL shows the row.
            extra={
                "events": len(events),
                "error": type(error).__name__,
                "detail": str(error).partition("\n")[0],
            },
        )
        return dict.fromkeys(ids, WriteFailed("write_failed"))
    with metrics.SETTLE_SECONDS.time():
        if contested:
            # Another connection wrote it, maybe to other data than the claims are about. The next
            # delivery finds the row, and settles.
            await claims.release(ids)
        else:
            await claims.settle([id_ for id_ in ids if outcomes[id_] in _COMMITTED])
            await claims.release([id_ for id_ in ids if outcomes[id_] is Outcome.REFUSED])
    return dict(outcomes)


def _tell(
    events: Sequence[Event], outcomes: dict[bytes, Outcome | WriteFailed]
) -> list[Outcome | WriteFailed]:
    """Return each event's own outcome, and count it: of repeats, only the first was written."""
    answers = []
    for event in events:
        answers.append(outcome := outcomes[event.event_id])
        if outcome is Outcome.WRITTEN:
            outcomes[event.event_id] = Outcome.DUPLICATE  # for those that repeat it
    tally = Counter(
        (event.vendor, event.workspace_id, answer)
        for event, answer in zip(events, answers, strict=True)
    )
    for (vendor, workspace_id, answer), number in tally.items():
        if isinstance(answer, WriteFailed):
            metrics.count(metrics.FAILED, vendor, workspace_id, answer.reason, number=number)
        elif answer is not Outcome.CONTESTED:  # not decided yet: counted when it is
            metric, reason = _COUNTED[answer]
            metrics.count(metric, vendor, workspace_id, reason, number=number)
    return answers
