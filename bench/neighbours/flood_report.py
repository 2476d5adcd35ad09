"""The figures of `flood`, and their verdicts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.testbed.figures import median_of, percentile

HEADINGS = ("figure", "target", "measured", "verdict")
P99_RATIO_MAX = 2.0
# Of the offered flood; the rest waits in front of the gateway.
OFFERED_MIN = 0.9
# Of its share: the next callback of the flood may be larger than the room left.
FILLED_MIN = 0.9


class Round(NamedTuple):
    """The purchases of one round: their answers and waits; and the drops kept a second."""

    sent: int
    written: int
    latencies: Sequence[float]
    drops: float = 0.0

    def wait_ms(self, share: float) -> float:
        """Return a percentile of the waits."""
        return 1000 * percentile(self.latencies, share)


@dataclass
class Flood:
    """The figures of a run. Rates are those of a second."""

    purchases: float
    peak: float = 0.0
    rate: float = 0.0
    alone: list[Round] = field(default_factory=list)
    beside: list[Round] = field(default_factory=list)
    counted: int = 0
    rows: int = 0
    share_bytes: float = 0.0
    used_bytes: int = 0
    singles: int = 0
    singles_kept: int = 0


class Line(NamedTuple):
    """A figure beside its target."""

    figure: str
    target: str
    measured: str
    holds: bool

    @property
    def verdict(self) -> str:
        """The word of the table."""
        return "ok" if self.holds else "MISSED"


def rows(flood: Flood) -> Iterator[Line]:
    """Return a line for each promise; of rounds the median counts."""
    p99, p99_alone = _wait(flood.beside, 0.99), _wait(flood.alone, 0.99)
    p50, p50_alone = _wait(flood.beside, 0.5), _wait(flood.alone, 0.5)
    yield Line(
        f"p99 of purchases at {flood.purchases:.0f}/s beside the flood ÷ alone",
        f"≤ {P99_RATIO_MAX:g}",
        f"{p99 / p99_alone:.2f} ({p99:.1f} ms ÷ {p99_alone:.1f} ms; p50 {p50:.1f} and "
        f"{p50_alone:.1f} ms)",
        p99 <= P99_RATIO_MAX * p99_alone,
    )
    drops = median_of(each.drops for each in flood.beside)
    yield Line(
        "drops kept beside them",
        f"{flood.rate:,.0f}/s: 5,000 or 80 % of the peak",
        f"{drops:,.0f}/s; peak {flood.peak:,.0f}/s",
        drops >= OFFERED_MIN * flood.rate,
    )
    rounds = (*flood.alone, *flood.beside)
    sent, written = sum(each.sent for each in rounds), sum(each.written for each in rounds)
    yield Line("purchases written", f"{sent:,}", f"{written:,}", written == sent)
    yield Line(
        "rows of the drops counted as kept",
        f"{flood.counted:,}",
        f"{flood.rows:,}",
        flood.rows == flood.counted,
    )
    yield Line(
        "bytes of one token's flood",
        f"≤ {flood.share_bytes / 1e6:.1f} MB: a quarter",
        f"{flood.used_bytes / 1e6:.2f} MB",
        FILLED_MIN * flood.share_bytes <= flood.used_bytes <= flood.share_bytes,
    )
    yield Line(
        "single drops of other tokens, when it is full",
        f"{flood.singles}",
        f"{flood.singles_kept} kept",
        0 < flood.singles == flood.singles_kept,
    )


def _wait(rounds: Sequence[Round], share: float) -> float:
    return median_of(each.wait_ms(share) for each in rounds)
