"""The report of `replay`: sums that close, as lines of text or as JSON."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, timedelta
from uuid import UUID

import msgspec

from app.event import Drop, DropReason, Event, Outcome
from sinks.timescale.replay import Counts

STAYS = {
    DropReason.IGNORED: "taken out",
    DropReason.OTHER_CELL: "stay in quarantine, for replay --from in the cell of their app",
}


class Sums:
    """The decisions so far. Each row that was read is in one of them."""

    def __init__(self) -> None:
        self.written = self.duplicate = 0
        self.dropped: Counter[DropReason] = Counter()
        self.left: Counter[str] = Counter()
        self.days: set[date] = set()
        # The first and last day of replays that were killed, or are under way.
        self.unfinished: Sequence[date] = ()

    @property
    def read(self) -> int:
        """The number of rows that were read and decided."""
        return self.written + self.duplicate + self.dropped.total() + self.left.total()

    @property
    def counts(self) -> Counts:
        """The sums as `imports` has them."""
        return Counts(self.read, self.written, self.duplicate, self.dropped.total())

    def add_drop(self, drop: Drop) -> None:
        """Count a row that is dropped again."""
        self.dropped[drop.reason] += 1

    def add(self, event: Event, outcome: Outcome) -> None:
        """Count an event whose outcome is final."""
        if outcome is Outcome.WRITTEN:
            self.written += 1
            self.days.add(day_of(event))
        elif outcome is Outcome.DUPLICATE:
            self.duplicate += 1
        else:
            self.dropped[DropReason.REFUSED] += 1


class Report(msgspec.Struct, kw_only=True):
    """The result, as `--json` prints it; of a dry run it is what would be."""

    dry_run: bool
    is_complete: bool
    import_id: UUID | None
    in_quarantine: int
    read: int
    written: int
    duplicate: int
    dropped: Mapping[str, int]
    left: Mapping[str, int]
    days: Sequence[date]
    unfinished: Sequence[date]


def report_lines(sums: Sums, *, is_dry: bool) -> Sequence[str]:
    """Return the sums as lines of text."""
    dropped, left = sums.dropped.total(), sums.left.total()
    would = "dry run, nothing is written: would be " if is_dry else ""
    decided = f"written {sums.written:,}  duplicate {sums.duplicate:,}  dropped {dropped:,}"
    lines = [f"{would}{decided}  left {left:,}  = {sums.read:,} read"]
    for reason, count in sums.dropped.most_common():
        stays = STAYS.get(reason, "stay in quarantine")
        lines.append(f"dropped: {count:,} {reason.value}, {stays}")
    lines += [f"left: {count:,} {reason}" for reason, count in sums.left.most_common() if count]
    if sums.days:
        lines.append(f"days touched (UTC): {listed(sorted(sums.days))}")
    if sums.unfinished:
        first, last = sums.unfinished
        lines.append(f"days of replays that were killed or are under way: {first} .. {last}")
    if is_dry and sums.written:
        lines.append("to write: --yes, in place of --dry-run")
    return lines


def listed(days: Sequence[date]) -> str:
    """Return ordered days as text: those in a row as a range."""
    ranges: list[tuple[date, date]] = []
    for day in days:
        if ranges and day - ranges[-1][1] == timedelta(days=1):
            ranges[-1] = (ranges[-1][0], day)
        else:
            ranges.append((day, day))
    return ", ".join(f"{a}" if a == b else f"{a} .. {b}" for a, b in ranges)


def day_of(event: Event) -> date:
    """Return the day of an event, in UTC."""
    return event.occurred_at.astimezone(UTC).date()
