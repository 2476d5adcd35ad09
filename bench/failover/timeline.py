"""The moments of a failover, and the seconds between them."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise


class Moment(Enum):
    """A moment after the fault; the values are the headings of the seconds that lead to it."""

    REQUESTED = "until Patroni promotes"
    PROMOTED = "promotion"
    ROUTED = "HAProxy"
    CONNECTED = "gateway connects"
    STANDBY = "standby confirms"
    WRITTEN = "first `written`"


@dataclass
class Failover:
    """One failover: its fault, its moments (seconds since the epoch), and the state of Redis."""

    fault: str
    began_at: float
    redis: str = ""
    moments: dict[Moment, float] = field(default_factory=dict)
    every_gateway_at: float = 0.0  # each gateway has written
    whole_at: float = 0.0  # the former primary is a standby again
    stopped_at: float = 0.0  # the last `written` before the promotion
    gap_s: float = 0.0  # the longest time without a `written`

    @property
    def slowest_s(self) -> float:
        """The seconds from the last `written` until each gateway has written."""
        return self.every_gateway_at - self.stopped_at

    def late(self, max_s: float) -> Iterator[str]:
        """Yield the longest gap, and the time of the slowest gateway, unless below a bound."""
        for name, seconds in (("longest gap", self.gap_s), ("each gateway writes", self.slowest_s)):
            if seconds >= max_s:
                yield f"{self.fault}: {name} {seconds:.2f} s, not below {max_s:g} s"

    def note(self, moment: Moment, at: float) -> None:
        """Note the first occurrence of a moment."""
        self.moments.setdefault(moment, at)

    def complete(self, written: Sequence[float]) -> None:
        """Take the last `written` before the promotion, the first after it, and the longest gap.

        `written` are the sorted times of all of them.
        """
        after = bisect_left(written, self.moments[Moment.REQUESTED])
        self.stopped_at = written[after - 1]
        self.note(Moment.WRITTEN, written[after])
        first, last = bisect_left(written, self.began_at), bisect_left(written, self.whole_at)
        times = written[max(first - 1, 0) : last + 1]
        self.gap_s = max(later - earlier for earlier, later in pairwise(times))

    def seconds(self) -> Mapping[Moment, float]:
        """Return the seconds that each moment adds to those before it, from the last `written`."""
        reached = self.stopped_at
        found: dict[Moment, float] = {}
        for moment in Moment:
            at = max(reached, self.moments.get(moment, reached))
            found[moment], reached = at - reached, at
        return found
