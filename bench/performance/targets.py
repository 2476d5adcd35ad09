"""The targets of `compare`, and the verdicts on its figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from bench.performance.measure import LatencyRound, PeakRound
from bench.testbed.figures import median_of

MB = 1024 * 1024
# The names of the rounds, in results and figures.
GATEWAY, FLOOR, AFTERNOON = "gateway", "floor", "afternoon"
DUPLICATES = "gateway, 50 % duplicates"
DROPS = "gateway, unmapped events"
APPSFLYER = "gateway, AppsFlyer's messages"
EMPTY, FULL = "gateway, empty table", "gateway, full table"
AT_1000, AT_200 = "gateway at 1,000/s", "gateway at 200/s"
AFTERNOON_1000 = "afternoon at 1,000/s"
GATEWAY_80 = "gateway at 80 % of the afternoon version's peak"
AFTERNOON_80 = "afternoon at 80 % of its peak"


class Rounds(msgspec.Struct):
    """The raw figures of every round, by name."""

    peaks: dict[str, list[PeakRound]] = {}
    latencies: dict[str, list[LatencyRound]] = {}
    durable_floor: list[dict[str, float]] = []
    pool_rates: dict[int, list[float]] = {}  # of the afternoon version, by the size of its pool
    filled_rows: int = 0
    redis_keys: int = 0
    redis_bytes: int = 0

    @property
    def pool_size(self) -> int:
        """Return the pool size of the afternoon version with the highest rate."""
        return max(self.pool_rates, key=lambda size: median_of(self.pool_rates[size]))

    def problems(self) -> list[str]:
        """Return every round whose answers and rows do not agree."""
        rounds: list[tuple[str, Sequence[PeakRound | LatencyRound]]]
        rounds = [*self.peaks.items(), *self.latencies.items()]
        return [
            f"{name}, round {number}: {round_.problem}"
            for name, several in rounds
            for number, round_ in enumerate(several, 1)
            if round_.problem
        ]

    def number(self) -> int:
        """Return the number of rounds."""
        peaks, latencies = self.peaks.values(), self.latencies.values()
        return sum(map(len, peaks)) + sum(map(len, latencies))


class Target(NamedTuple):
    """A figure and its limit: at most, or else at least."""

    figure: str
    limit: float
    is_most: bool = True
    unit: str = ""


class Figure(NamedTuple):
    """A measured value, and its parts."""

    value: float
    made_of: str = ""


class Verdict(NamedTuple):
    """A figure beside its target."""

    figure: str
    target: str
    measured: str
    verdict: str
    holds: bool


CPU = Target("CPU of the gateway per event ÷ of an empty Sanic handler", 1.9)
PEAK = Target("durable callbacks/s ÷ the afternoon version's", 4.5, is_most=False)
P50 = Target("p50 at 1,000/s", 3, unit=" ms")
P99 = Target("p99 at 1,000/s", 15, unit=" ms")
P99_RATIO = Target("p99 ÷ the afternoon version's, at 80 % of its peak", 0.5)
P50_RATIO = Target("p50 at 200/s ÷ the durable floor's", 2)
DUPLICATE_RATIO = Target("throughput with 50 % duplicates ÷ with none", 1, is_most=False)
FULL_RATIO = Target("CPU of gateway and database per event, full table ÷ empty", 1.2)
MEMORY = Target("memory of a worker at peak", 150, unit=" MB")
REDIS = Target("Redis memory per remembered event, plain keys", 160, unit=" bytes")
DROP_RATIO = Target("CPU of the gateway per drop ÷ per event", 1)
JSON_RATIO = Target("CPU of the gateway per AppsFlyer message ÷ per Adjust callback", 1.6)
TARGETS = (
    CPU, PEAK, P50, P99, P99_RATIO, P50_RATIO, DUPLICATE_RATIO, FULL_RATIO, MEMORY, REDIS,
    DROP_RATIO, JSON_RATIO,
)  # fmt: skip


def figures(rounds: Rounds) -> dict[Target, Figure]:
    """Return every figure of a complete run, made of medians."""
    keys = f"{rounds.redis_keys:,} events"
    redis = {REDIS: Figure(rounds.redis_bytes / max(1, rounds.redis_keys), keys)}
    return dict(_of_peaks(rounds.peaks)) | dict(_of_latencies(rounds)) | redis


def _of_peaks(peaks: Mapping[str, list[PeakRound]]) -> Iterator[tuple[Target, Figure]]:
    gateway, floor = (median_of(r.cost.server_us for r in peaks[n]) for n in (GATEWAY, FLOOR))
    # The floor wakes an idle wrk with each answer, a large part of its cost; the gateway answers
    # many callbacks at once. The ratio in user mode leaves that out, and is the stricter one.
    user, floor_user = (
        median_of(r.cost.server_user_us for r in peaks[n]) for n in (GATEWAY, FLOOR)
    )
    in_user = f"in user mode {user:.1f} ÷ {floor_user:.1f} = {user / floor_user:.2f}"
    yield CPU, _ratio(gateway, floor, "µs", in_user)
    rates = {name: median_of(r.rate for r in several) for name, several in peaks.items()}
    yield PEAK, _ratio(rates[GATEWAY], rates[AFTERNOON], "/s")
    yield DUPLICATE_RATIO, _ratio(rates[DUPLICATES], rates[GATEWAY], "/s")
    drop = median_of(r.cost.server_us for r in peaks[DROPS])
    yield DROP_RATIO, _ratio(drop, gateway, "µs", f"{rates[DROPS]:,.0f} drops/s")
    message = median_of(r.cost.server_us for r in peaks[APPSFLYER])
    yield JSON_RATIO, _ratio(message, gateway, "µs", f"{rates[APPSFLYER]:,.0f} messages/s")
    empty, full = (
        median_of(r.cost.server_us + r.cost.database_us for r in peaks[name])
        for name in (EMPTY, FULL)
    )
    yield FULL_RATIO, _ratio(full, empty, "µs")
    most = max(
        r.peak_memory_bytes for name in (GATEWAY, DUPLICATES, DROPS, FULL) for r in peaks[name]
    )
    yield MEMORY, Figure(most / MB)


def _of_latencies(rounds: Rounds) -> Iterator[tuple[Target, Figure]]:
    p50 = {n: median_of(r.k6.p50_ms for r in several) for n, several in rounds.latencies.items()}
    p99 = {n: median_of(r.k6.p99_ms for r in several) for n, several in rounds.latencies.items()}
    # A figure is too good if k6 could not send in time, for want of callers.
    late = {n: sum(r.k6.late for r in several) for n, several in rounds.latencies.items()}
    words = {n: f"{number:,} callbacks not sent in time" for n, number in late.items() if number}
    yield P50, Figure(p50[AT_1000], words.get(AT_1000, ""))
    yield P99, Figure(p99[AT_1000], words.get(AT_1000, ""))
    yield P99_RATIO, _ratio(p99[GATEWAY_80], p99[AFTERNOON_80], "ms", words.get(GATEWAY_80, ""))
    floor = median_of(taken["p50_ms"] for taken in rounds.durable_floor)
    yield P50_RATIO, _ratio(p50[AT_200], floor, "ms", words.get(AT_200, ""))


def _ratio(part: float, whole: float, unit: str, more: str = "") -> Figure:
    unit = unit if unit.startswith("/") else f" {unit}"
    form = ",.0f" if unit == "/s" else ".2f" if unit == " ms" else ".1f"
    made_of = f"{part:{form}}{unit} ÷ {whole:{form}}{unit}"
    return Figure(part / whole, f"{made_of}, {more}" if more else made_of)


def judge(target: Target, figure: Figure) -> Verdict:
    """Compare a figure with its target."""
    holds = figure.value <= target.limit if target.is_most else figure.value >= target.limit
    missed_by = abs(figure.value / target.limit - 1)
    form = ".2f" if figure.value >= 0.1 else ".4f"  # noqa: PLR2004 - two digits
    sign = "≤" if target.is_most else "≥"
    return Verdict(
        target.figure,
        f"{sign} {target.limit:g}{target.unit}",
        f"{figure.value:{form}}{target.unit}" + (f" ({figure.made_of})" if figure.made_of else ""),
        "ok" if holds else f"MISSED by {missed_by:.1%}",
        holds,
    )


def judge_all(rounds: Rounds) -> list[Verdict]:
    """Return a verdict for every target, and one for the rows of all rounds."""
    found = figures(rounds)
    verdicts = [judge(target, found[target]) for target in TARGETS]
    problems = rounds.problems()
    total = rounds.number()
    return [
        *verdicts,
        Verdict(
            "rounds without a lost or refused callback",
            f"{total}",
            f"{total - len(problems)}",
            "ok" if not problems else f"MISSED by {len(problems)} rounds",
            not problems,
        ),
    ]
