"""The outcome of a callback becomes a metric here, and nowhere else."""

from collections import Counter
from collections.abc import Sequence
from operator import attrgetter

from app.dropped import Dropped
from app.event import DropReason, Event, Outcome
from app.telemetry.metrics import (
    BY_WORKSPACE,
    DROPPED,
    DUPLICATE,
    FAILED,
    IGNORED,
    QUARANTINE_ROWS,
    WRITTEN,
)
from app.telemetry.tallies import Tally

_OWNER = attrgetter("vendor", "workspace_id")
# A CONTESTED event is counted once it is decided, a REFUSED one once it is in quarantine.
_COUNTED: dict[Outcome, tuple[Tally, tuple[str, ...]]] = {
    Outcome.WRITTEN: (BY_WORKSPACE[WRITTEN], ()),
    Outcome.DUPLICATE: (BY_WORKSPACE[DUPLICATE], ()),
    Outcome.FAILED: (BY_WORKSPACE[FAILED], ("write_failed",)),
    Outcome.TOO_LATE: (BY_WORKSPACE[FAILED], ("too_late",)),
}


def count_events(events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
    """Count the events of a batch by outcome."""
    tally_of = Counter(zip(map(_OWNER, events), outcomes, strict=True))
    for (owner, outcome), number in tally_of.items():
        if counted := _COUNTED.get(outcome):
            tally, reason = counted
            tally.add(owner + reason, number)


def count_drop(vendor: str, workspace: str, reason: DropReason, subject: str = "") -> None:
    """Count a dropped callback; the workspace of an unknown app is empty."""
    BY_WORKSPACE[DROPPED].add((vendor, workspace, reason.value))
    if reason is DropReason.IGNORED:
        BY_WORKSPACE[IGNORED].add((vendor, workspace, subject))


def count_kept(drops: Sequence[Dropped]) -> None:
    """Count drops that are in quarantine now."""
    series = ((dropped.vendor, dropped.workspace_id, dropped.reason.value) for dropped in drops)
    for labels, number in Counter(series).items():
        BY_WORKSPACE[DROPPED].add(labels, number)
        QUARANTINE_ROWS.labels(labels[-1]).inc(number)


def count_failure(vendor: str, workspace: str, reason: str) -> None:
    """Count a verified callback that is answered 500 or 503 without an attempt to write it."""
    BY_WORKSPACE[FAILED].add((vendor, workspace, reason))
