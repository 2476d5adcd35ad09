"""The chronicle of a run: faults, restores and wrong clocks, by which it is judged."""

from bisect import bisect_left
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

# Between two clocks of one machine, and between one of them and one of libfaketime, which was seen
# more than a millisecond behind.
_CLOCK_S, _FAKED_S = 0.001, 0.1
_UNTIL = attrgetter("until")


class Cut(NamedTuple):
    """A restore: the data of `target` is back, and the server takes writes from `back` on.

    An answer until `target` must have its row. The row of a later one may be gone.
    """

    target: float
    back: float

    def undoes(self, answered_at: float, committed_at: float) -> bool:
        """Whether the row behind an answer was lost by the restore; a present row is newer."""
        return self.target < answered_at <= self.back < committed_at


class Shift(NamedTuple):
    """A gateway's clock of libfaketime, ahead by `ahead_s` from `since` until `until`."""

    since: float
    until: float
    ahead_s: float


class Disturbance(NamedTuple):
    """A fault, from its beginning to the end of the recovery from it."""

    since: float
    until: float


@dataclass
class Chronicle:
    """The restores, the wrong clocks and the faults of one run.

    `disturbances` are all faults, in the order of their ends; None where they are not known.
    """

    cuts: list[Cut] = field(default_factory=list)
    shifts: list[Shift] = field(default_factory=list)
    disturbances: list[Disturbance] | None = None

    def is_disturbed(self, sent_at: float, answered_at: float) -> bool:
        """Whether a fault may have failed an attempt: always where the faults are not known."""
        if self.disturbances is None:
            return True
        # The first that has not ended before the attempt.
        place = bisect_left(self.disturbances, sent_at, key=_UNTIL)
        return place < len(self.disturbances) and self.disturbances[place].since <= answered_at

    def is_undone(self, answered_at: float, committed_at: float) -> bool:
        """Whether an answer does not count, since a restore has undone its commit.

        `committed_at` is that of the present row; infinity without one.
        """
        return any(cut.undoes(answered_at, committed_at) for cut in self.cuts)

    def is_arrival(self, received_at: float, sent_at: float, answered_at: float) -> bool:
        """Whether a row may have this time of arrival: by a right clock, or by one that was off."""
        if _is_between(received_at, sent_at, answered_at, _CLOCK_S):
            return True
        return any(
            _is_between(received_at - shift.ahead_s, sent_at, answered_at, _FAKED_S)
            for shift in self.shifts
            if sent_at <= shift.until and shift.since <= answered_at
        )


def _is_between(moment: float, first: float, last: float, tolerance_s: float) -> bool:
    return first - tolerance_s <= moment <= last + tolerance_s
