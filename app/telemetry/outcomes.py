"""The outcome of a callback becomes a metric here, and nowhere else."""

from collections import Counter
from collections.abc import Sequence

from app.event import Drop, DropReason, Event, Outcome
from app.telemetry import metrics

_COUNTED = {
    Outcome.WRITTEN: (metrics.WRITTEN, None),
    Outcome.DUPLICATE: (metrics.DUPLICATE, None),
    Outcome.REFUSED: (metrics.DROPPED, DropReason.REFUSED.value),
    Outcome.FAILED: (metrics.FAILED, "write_failed"),
}


def count_events(events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
    """Count the events of a batch by outcome; a CONTESTED one counts when it is decided."""
    tally = Counter(
        (event.vendor, event.workspace_id, outcome)
        for event, outcome in zip(events, outcomes, strict=True)
    )
    for (vendor, workspace, outcome), number in tally.items():
        if outcome is not Outcome.CONTESTED:
            metric, reason = _COUNTED[outcome]
            metrics.count(metric, vendor, workspace, reason, number=number)


def count_drop(vendor: str, workspace: str, drop: Drop) -> None:
    """Count a dropped callback; the workspace is empty where the app token has none."""
    metrics.count(metrics.DROPPED, vendor, workspace, drop.reason.value)
    if drop.reason is DropReason.IGNORED:
        metrics.count(metrics.IGNORED, vendor, workspace, drop.subject)


def count_failure(vendor: str, workspace: str, reason: str) -> None:
    """Count a verified callback that is answered 500 or 503 without an attempt to write it."""
    metrics.count(metrics.FAILED, vendor, workspace, reason)
