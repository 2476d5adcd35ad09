"""The outcome of a callback becomes a metric here, and nowhere else."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from operator import attrgetter

from app.event import DropReason, Event, Outcome
from app.telemetry.metrics import BY_WORKSPACE, DROPPED, DUPLICATE, FAILED, IGNORED, WRITTEN
from app.telemetry.tallies import Labels, Tally

_OWNER = attrgetter("vendor", "workspace_id")
# A CONTESTED event is counted once it is decided, a REFUSED one once it is in quarantine.
_COUNTED: dict[Outcome, tuple[Tally, tuple[str, ...]]] = {
    Outcome.WRITTEN: (BY_WORKSPACE[WRITTEN], ()),
    Outcome.DUPLICATE: (BY_WORKSPACE[DUPLICATE], ()),
    Outcome.FAILED: (BY_WORKSPACE[FAILED], ("write_failed",)),
}


def count_events(events: Sequence[Event], outcomes: Sequence[Outcome]) -> None:
    """Count the events of a batch by outcome."""
    tally_of = Counter(zip(map(_OWNER, events), outcomes, strict=True))
    for (owner, outcome), number in tally_of.items():
        if counted := _COUNTED.get(outcome):
            tally, reason = counted
            _add(tally, owner + reason, number)


def count_drop(vendor: str, workspace: str, reason: DropReason, subject: str = "") -> None:
    """Count a dropped callback; the workspace of an unknown app is empty."""
    _add(BY_WORKSPACE[DROPPED], (vendor, workspace, reason.value))
    if reason is DropReason.IGNORED:
        _add(BY_WORKSPACE[IGNORED], (vendor, workspace, subject))


def count_failure(vendor: str, workspace: str, reason: str) -> None:
    """Count a verified callback that is answered 500 or 503 without an attempt to write it."""
    _add(BY_WORKSPACE[FAILED], (vendor, workspace, reason))


def _add(tally: Tally, labels: Labels, number: int = 1) -> None:
    # A full disk under the numbers of several workers fails no committed callback, and hides no
    # other series: only one that is new, or the first in a fuller file, needs the disk.
    with suppress(OSError):
        tally.add(labels, number)
