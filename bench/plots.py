"""The plots of the reports, as SVG."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from bench.targets import (
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

# The same figures give the same file, which can be compared.
SETTINGS: dict[Any, Any] = {"svg.hashsalt": "flokit", "font.size": 9, "axes.spines.top": False}
_PEAKS = (FLOOR, GATEWAY, DUPLICATES, EMPTY, FULL, AFTERNOON)
_PERCENTILES = {"p50": "p50_ms", "p95": "p95_ms", "p99": "p99_ms", "p99.9": "p999_ms"}


def draw(rounds: Rounds, folder: Path) -> Iterator[tuple[str, str]]:
    """Write every plot, and yield its file's name and what it shows."""
    parts = (
        ("cpu.svg", "CPU per request at peak, µs", _cpu),
        ("peak.svg", "Answers a second at peak", _peaks),
        ("latency.svg", "Latency at 80 % of the afternoon version's peak, ms", _latency),
    )
    for name, title, paint in parts:
        with rc_context(SETTINGS):
            figure = Figure(figsize=(8, 3), layout="constrained")
            axes = figure.subplots()
            paint(axes, rounds)
            axes.set_title(title)
            figure.savefig(folder / name, metadata={"Date": None})
        yield name, title


def _cpu(axes: Any, rounds: Rounds) -> None:
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


def _peaks(axes: Any, rounds: Rounds) -> None:
    names = [name for name in _PEAKS if name in rounds.peaks]
    axes.barh(names, [median_of(r.rate for r in rounds.peaks[name]) for name in names], alpha=0.6)
    for name in names:
        rates = [round_.rate for round_ in rounds.peaks[name]]
        axes.plot(rates, [name] * len(rates), "k.", markersize=4)
    axes.invert_yaxis()


def _latency(axes: Any, rounds: Rounds) -> None:
    for name in (GATEWAY_80, AFTERNOON_80):
        several = rounds.latencies[name]
        values = [median_of(getattr(r.k6, key) for r in several) for key in _PERCENTILES.values()]
        axes.plot(list(_PERCENTILES), values, "o-", label=name)
    axes.set_yscale("log")
    axes.legend()
