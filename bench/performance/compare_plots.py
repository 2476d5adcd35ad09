"""The plots of `compare`."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.performance.targets import (
    AFTERNOON,
    AFTERNOON_80,
    DUPLICATES,
    EMPTY,
    FLOOR,
    FULL,
    GATEWAY,
    GATEWAY_80,
    Rounds,
    median_of,
)
from bench.testbed.results import Plot

_PEAKS = (FLOOR, GATEWAY, DUPLICATES, EMPTY, FULL, AFTERNOON)
_PERCENTILES = {"p50": "p50_ms", "p95": "p95_ms", "p99": "p99_ms", "p99.9": "p999_ms"}


def plots(rounds: Rounds) -> Iterator[Plot]:
    """Return every plot."""
    yield Plot("cpu", "CPU per request at peak, µs", partial(_cpu, rounds))
    yield Plot("peak", "Answers a second at peak", partial(_peaks, rounds))
    title = "Latency at 80 % of the afternoon version's peak, ms"
    yield Plot("latency", title, partial(_latency, rounds))


def _cpu(rounds: Rounds, axes: Any) -> None:
    names = [name for name in _PEAKS if name in rounds.peaks]
    left = [0.0] * len(names)
    for label in ("server", "database", "redis"):
        costs = [
            median_of(getattr(r.cost, f"{label}_us") for r in rounds.peaks[name]) for name in names
        ]
        axes.barh(names, costs, left=left, label=label.capitalize())
        left = [sum(pair) for pair in zip(left, costs, strict=True)]
    axes.invert_yaxis()
    axes.legend()


def _peaks(rounds: Rounds, axes: Any) -> None:
    names = [name for name in _PEAKS if name in rounds.peaks]
    axes.barh(names, [median_of(r.rate for r in rounds.peaks[name]) for name in names], alpha=0.6)
    for name in names:
        rates = [round_.rate for round_ in rounds.peaks[name]]
        axes.plot(rates, [name] * len(rates), "k.", markersize=4)
    axes.invert_yaxis()


def _latency(rounds: Rounds, axes: Any) -> None:
    for name in (GATEWAY_80, AFTERNOON_80):
        several = rounds.latencies[name]
        values = [median_of(getattr(r.k6, key) for r in several) for key in _PERCENTILES.values()]
        axes.plot(list(_PERCENTILES), values, "o-", label=name)
    axes.set_yscale("log")
    axes.legend()
