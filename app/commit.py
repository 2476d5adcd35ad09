"""Exactly once: fold the batch, claim it, write it, then settle or release the claims."""

import asyncio
import logging
from collections.abc import Sequence

from app.claims.redis import Claims
from app.event import Claim, Event, Outcome
from app.telemetry import metrics
from app.telemetry.observer import UNOBSERVED, Observer, Stage
from sinks import Sink

_COMMITTED = (Outcome.WRITTEN, Outcome.DUPLICATE)

log = logging.getLogger(__name__)


async def commit(
    events: Sequence[Event], claims: Claims, sink: Sink, observer: Observer = UNOBSERVED
) -> Sequence[Outcome]:
    """Commit one batch and return the outcome of each event, in order.

    Repeats of one event are folded into one. A CONTESTED event goes on to `commit_contested`; a
    FAILED one may be retried.
    """
    metrics.BATCH_EVENTS.observe(len(events))
    with metrics.COMMIT_SECONDS.time(), observer.batch(events):
        unique = {event.event_id: event for event in reversed(events)}
        outcomes = await _claim(list(unique), claims, observer)
        held = [event for event_id, event in unique.items() if event_id not in outcomes]
        if held:
            outcomes |= await _write(held, claims, sink, observer)
    return _unfold(events, outcomes)


async def commit_contested(
    event: Event, claims: Claims, sink: Sink, observer: Observer = UNOBSERVED
) -> Outcome:
    """Commit one contested event and return its outcome: the database decides, without a claim."""
    with observer.batch([event]):
        try:
            with metrics.WRITE_SECONDS.time(), observer.stage(Stage.WRITE, 1):
                outcome = await sink.write_contested(event)
        except Exception as error:  # noqa: BLE001 - whatever the error, a retry is safe and wanted
            _log_failure(1, error)
            outcome = Outcome.FAILED
        finally:
            # Released even when it is written: the connection for contested events may lead to
            # other data than the claims are about. The next delivery finds the row, and settles.
            with metrics.SETTLE_SECONDS.time():
                await _release([event.event_id], claims, observer)
    return outcome


async def _claim(
    event_ids: Sequence[bytes], claims: Claims, observer: Observer
) -> dict[bytes, Outcome]:
    """Claim the events, and return the outcome of those that are not ours to write."""
    with metrics.CLAIM_SECONDS.time(), observer.stage(Stage.CLAIM, len(event_ids)):
        answers = await claims.claim(event_ids)
    return {
        event_id: Outcome.DUPLICATE if answer is Claim.SEEN else Outcome.CONTESTED
        for event_id, answer in zip(event_ids, answers, strict=True)
        if answer is not Claim.HELD
    }


async def _write(
    events: Sequence[Event], claims: Claims, sink: Sink, observer: Observer
) -> dict[bytes, Outcome]:
    """Write claimed events; settle the committed ones and release the refused ones."""
    ids = [event.event_id for event in events]
    try:
        with metrics.WRITE_SECONDS.time(), observer.stage(Stage.WRITE, len(ids)):
            outcomes = dict(zip(ids, await sink.write(events), strict=True))
    except asyncio.CancelledError:
        await _release(ids, claims, observer)
        raise
    except Exception as error:  # noqa: BLE001 - whatever the error, a retry is safe and wanted
        await _release(ids, claims, observer)
        _log_failure(len(ids), error)
        return dict.fromkeys(ids, Outcome.FAILED)
    with metrics.SETTLE_SECONDS.time():
        committed = [id_ for id_ in ids if outcomes[id_] in _COMMITTED]
        with observer.stage(Stage.SETTLE, len(committed)):
            await claims.settle(committed)
        await _release([id_ for id_ in ids if outcomes[id_] is Outcome.REFUSED], claims, observer)
    return outcomes


async def _release(event_ids: Sequence[bytes], claims: Claims, observer: Observer) -> None:
    if event_ids:  # rarely
        with observer.stage(Stage.RELEASE, len(event_ids)):
            await claims.release(event_ids)


def _unfold(events: Sequence[Event], outcomes: dict[bytes, Outcome]) -> list[Outcome]:
    """Return the outcome of each event: of repeats, only the first one was written."""
    unfolded = []
    for event in events:
        unfolded.append(outcome := outcomes[event.event_id])
        if outcome is Outcome.WRITTEN:
            outcomes[event.event_id] = Outcome.DUPLICATE
    return unfolded


def _log_failure(events: int, error: Exception) -> None:
    # Only the first line: in the following ones PostgreSQL shows the row.
    detail = str(error).partition("\n")[0]
    log.error(
        "batch failed", extra={"events": events, "error": type(error).__name__, "detail": detail}
    )
