"""The verdict of the oracle, and its part of a report."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bench.testbed.ledger import Ledger

OFFENDERS_MAX = 10


@dataclass
class Verdict:
    """The broken promises: for each kind the numbers of its events, with a reason.

    A negative number is that of no event.
    """

    lost: dict[int, str] = field(default_factory=dict)
    doubled: dict[int, str] = field(default_factory=dict)
    lied: dict[int, str] = field(default_factory=dict)
    leaked: dict[int, str] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    rows: int = 0
    dropped_rows: int = 0
    undisturbed: int = 0  # attempts beside every fault
    undisturbed_failed: int = 0

    @property
    def broken(self) -> Mapping[str, Mapping[int, str]]:
        """The events of each broken promise, by its name."""
        return {
            "lost": self.lost,
            "doubled": self.doubled,
            "lied": self.lied,
            "leaked": self.leaked,
            "failed": self.failed,
        }

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not any(self.broken.values())


def verdict_rows(verdict: Verdict, stuck: Sequence[str]) -> dict[str, int]:
    """Return the number of events of each broken promise, and that of stuck parts."""
    return {name: len(events) for name, events in verdict.broken.items()} | {"stuck": len(stuck)}


def offenders(verdict: Verdict, stuck: Sequence[str], ledger: Ledger) -> Iterator[str]:
    """Yield a line for each broken promise, at most OFFENDERS_MAX of a kind, with its answers."""
    for name, events in verdict.broken.items():
        for number, reason in list(events.items())[:OFFENDERS_MAX]:
            yield f"{name}: callback {number}: {reason}"
            for entry in ledger.of(number):
                yield f"    {entry.answered_at:.3f} {entry.kind.value}"
    yield from (f"stuck: {place}" for place in stuck)
