"""The figures of an overload, and the promises that they keep or break."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import NamedTuple

from bench.testbed.callers import Record
from bench.testbed.figures import percentile
from bench.testbed.ledger import AnswerKind

BIG, SMALL = "ws_shop", "ws_game"
_MB = 1024 * 1024
_OUTCOMES = ("written", "duplicate", "dropped", "failed")


@dataclass(frozen=True)
class Limits:
    """The limits of the promises; a test on a busy machine has wider ones than the bench."""

    refused_p99_s: float = 0.25
    probe_max_s: float = 1.0
    # A connection, its request, its task and its event.
    place_bytes: int = 24 * 1024
    plateau_bytes: int = 8 * _MB
    goodput_ratio: float = 0.9
    # Of the longest wait over (places / goodput): commits vary.
    wait_ratio: float = 1.25
    # Of the median wait of the small workspace over that of the big one.
    small_wait_ratio: float = 0.25
    light_ratio: float = 1.5


class Sample(NamedTuple):
    """The process at one moment: its memory, and the latency of a health check."""

    memory_bytes: int
    probe_s: float


@dataclass
class Measured:
    """Everything measured, by phase."""

    offered: float
    buffer_max: int
    delay_s: float = 0.0
    phases: dict[str, Record] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    answers: Counter[AnswerKind] = field(default_factory=Counter)
    left_in_buffer: int = 0
    rows: int = 0


class Promise(NamedTuple):
    """One promise, and whether it was kept."""

    name: str
    target: str
    measured: str
    holds: bool


def judge(measured: Measured, limits: Limits) -> list[Promise]:
    """Return every promise with its measured figure."""
    parts: Sequence[Callable[[Measured, Limits], Iterator[Promise]]] = (
        _refusals, _accepted, _memory, _small, _afterwards, _books,
    )  # fmt: skip
    return [promise for part in parts for promise in part(measured, limits)]


def _refusals(measured: Measured, limits: Limits) -> Iterator[Promise]:
    overload, saturated = measured.phases["overload"], measured.phases["saturated"]
    rate = overload.sent / overload.duration_s
    yield Promise(
        "offered",
        f"{measured.offered:,.0f}/s, at least 4 times the capacity",
        f"{rate:,.0f}/s for {overload.duration_s:.0f} s",
        rate > 4 * saturated.goodput,
    )
    refused = overload.of(AnswerKind.UNAVAILABLE)
    others = overload.number() - len(refused) - overload.number(AnswerKind.WRITTEN)
    yield Promise(
        "refusals are 503 with Retry-After",
        "all of them, and nothing else but 200",
        f"{len(refused):,} of {overload.number():,}; others: {others}",
        bool(refused) and not others,
    )
    yield Promise(
        "refusals are fast",
        f"p99 below {_ms(limits.refused_p99_s)}",
        _percentiles(refused),
        percentile(refused, 0.99) < limits.refused_p99_s,
    )
    probes = sorted(sample.probe_s for sample in measured.samples["overload"])
    yield Promise(
        "/healthz is answered",
        f"each time below {_ms(limits.probe_max_s)}",
        _percentiles(probes),
        probes[-1] < limits.probe_max_s,
    )


def _accepted(measured: Measured, limits: Limits) -> Iterator[Promise]:
    overload, saturated = measured.phases["overload"], measured.phases["saturated"]
    ratio = overload.goodput / saturated.goodput
    yield Promise(
        "goodput, against the same sink just saturated",
        f"at least {limits.goodput_ratio:.0%} of {saturated.goodput:.0f}/s",
        f"{ratio:.0%}: {overload.goodput:.0f}/s",
        ratio >= limits.goodput_ratio,
    )
    waited = overload.of(AnswerKind.WRITTEN)
    bound = limits.wait_ratio * measured.buffer_max / overload.goodput
    yield Promise(
        "an accepted callback waits for a bounded time",
        f"{limits.wait_ratio:g} * {measured.buffer_max:,} places / goodput = {bound:.1f} s",
        _percentiles(waited),
        waited[-1] < bound,
    )


def _memory(measured: Measured, limits: Limits) -> Iterator[Promise]:
    memory = [sample.memory_bytes for sample in measured.samples["overload"]]
    quarter = max(1, len(memory) // 4)
    growth = mean(memory[-quarter:]) - mean(memory[quarter : 2 * quarter])
    yield Promise(
        "memory reaches a plateau",
        f"from the 2nd to the 4th quarter less than {limits.plateau_bytes / _MB:.0f} MB",
        f"{growth / _MB:+.1f} MB",
        growth < limits.plateau_bytes,
    )
    before = measured.samples["before"][-1].memory_bytes
    grown = max(memory) - before
    most = measured.buffer_max * limits.place_bytes
    yield Promise(
        "the plateau is explained by the buffer",
        f"{measured.buffer_max:,} places of {limits.place_bytes // 1024} KB = {most / _MB:.0f} MB",
        f"{before / _MB:.0f} MB + {grown / _MB:.0f} MB",
        grown < most,
    )
    after = measured.samples["afterwards"][-1].memory_bytes
    yield Promise(
        "afterwards no more memory than at the plateau",
        f"at most {max(memory) / _MB:.0f} MB + {limits.plateau_bytes / _MB:.0f} MB",
        f"{after / _MB:.0f} MB",
        after < max(memory) + limits.plateau_bytes,
    )


def _small(measured: Measured, limits: Limits) -> Iterator[Promise]:
    overload = measured.phases["overload"]
    written, sent = overload.number(AnswerKind.WRITTEN, SMALL), overload.number(None, SMALL)
    yield Promise(
        "the small workspace is accepted",
        "all of it",
        f"{written:,} of {sent:,}; of the big one {overload.number(AnswerKind.WRITTEN, BIG):,} "
        f"of {overload.number(None, BIG):,}",
        written == sent > 0,
    )
    of_small, of_big = overload.of(AnswerKind.WRITTEN, SMALL), overload.of(AnswerKind.WRITTEN, BIG)
    bound = limits.small_wait_ratio * percentile(of_big, 0.5)
    yield Promise(
        "the small workspace does not wait behind the big one",
        f"p50 below {limits.small_wait_ratio:.0%} of the big one's {percentile(of_big, 0.5):.1f} s",
        _percentiles(of_small),
        percentile(of_small, 0.5) < bound,
    )


def _afterwards(measured: Measured, limits: Limits) -> Iterator[Promise]:
    before, after = (measured.phases[name] for name in ("before", "afterwards"))
    alone = percentile(before.of(AnswerKind.WRITTEN), 0.5)
    waited = after.of(AnswerKind.WRITTEN)
    yield Promise(
        "afterwards everything is accepted, as fast as before",
        f"p50 below {limits.light_ratio:g} * {_ms(alone)}",
        f"{len(waited):,} of {after.sent:,}; {_percentiles(waited)}",
        len(waited) == after.sent and percentile(waited, 0.5) < limits.light_ratio * alone,
    )
    left = measured.left_in_buffer
    yield Promise("afterwards nothing is left in the buffer", "0", f"{left}", left == 0)


def _books(measured: Measured, _: Limits) -> Iterator[Promise]:
    counted = {
        name: round(
            sum(
                value
                for series, value in measured.metrics.items()
                if series.startswith(f"flokit_callbacks_{name}_total")
            )
        )
        for name in ("received", *_OUTCOMES)
    }
    answers = measured.answers
    written, refused = answers[AnswerKind.WRITTEN], answers[AnswerKind.UNAVAILABLE]
    yield Promise(
        "received = written + duplicate + dropped + failed",
        f"as the callers counted: {sum(answers.values()):,} = {written:,} + 0 + 0 + {refused:,}",
        " + ".join(f"{counted[name]:,}" for name in _OUTCOMES) + f" = {counted['received']:,}",
        counted["received"] == sum(counted[name] for name in _OUTCOMES) == sum(answers.values())
        and (counted["written"], counted["failed"]) == (written, refused),
    )
    yield Promise(
        "one row for each answer `written`",
        f"{written:,}",
        f"{measured.rows:,}",
        measured.rows == written,
    )


def _percentiles(latencies: Sequence[float]) -> str:
    middle, high = (_ms(percentile(latencies, share)) for share in (0.5, 0.99))
    return f"p50 {middle}, p99 {high}, max {_ms(latencies[-1] if latencies else 0.0)}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"
