"""The plots of `compare`."""

from collections.abc import Iterator
from functools import partial

from matplotlib.axes import Axes

from bench.performance.measure import COSTS, PERCENTILES
from bench.performance.targets import (
    AFTERNOON,
    AFTERNOON_80,
    DROPS,
    DUPLICATES,
    EMPTY,
    FLOOR,
    FULL,
    GATEWAY,
    GATEWAY_80,
    Rounds,
)
from bench.testbed.figures import median_of
from bench.testbed.results import Plot

_PEAKS = (FLOOR, GATEWAY, DUPLICATES, DROPS, EMPTY, FULL, AFTERNOON)


def plots(rounds: Rounds) -> Iterator[Plot]:
    """Return every plot."""
    yield Plot("cpu", "CPU per request at peak, µs", partial(_cpu, rounds))
    yield Plot("peak", "Answers a second at peak", partial(_peaks, rounds))
    title = "Latency at 80 % of the afternoon version's peak, ms"
    yield Plot("latency", title, partial(_latency, rounds))


def _cpu(rounds: Rounds, axes: Axes) -> None:
    names = [name for name in _PEAKS if name in rounds.peaks]
    left = [0.0] * len(names)
    for label, of in COSTS.items():
        costs = [median_of(of(r) for r in rounds.peaks[name]) for name in names]
        axes.barh(names, costs, left=left, label=label)
        left = [sum(pair) for pair in zip(left, costs, strict=True)]
    axes.invert_yaxis()
    axes.legend()


def _peaks(rounds: Rounds, axes: Axes) -> None:
    names = [name for name in _PEAKS if name in rounds.peaks]
    axes.barh(names, [median_of(r.rate for r in rounds.peaks[name]) for name in names], alpha=0.6)
    for name in names:
        rates = [round_.rate for round_ in rounds.peaks[name]]
        axes.plot(rates, [name] * len(rates), "k.", markersize=4)
    axes.invert_yaxis()


def _latency(rounds: Rounds, axes: Axes) -> None:
    for name in (GATEWAY_80, AFTERNOON_80):
        several = rounds.latencies[name]
        values = [median_of(of(r) for r in several) for of in PERCENTILES.values()]
        axes.plot(list(PERCENTILES), values, "o-", label=name)
    axes.set_yscale("log")
    axes.legend()
