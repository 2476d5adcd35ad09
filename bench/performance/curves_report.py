"""The report of `curves`: JSON with every round, one table, and a plot for each curve."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
from matplotlib.axes import Axes

from bench.performance.measure import COSTS, PERCENTILES, Footprint, LatencyRound, PeakRound
from bench.performance.schedules import CurvesSchedule
from bench.performance.targets import MB
from bench.testbed import results
from bench.testbed.console import markdown_table
from bench.testbed.figures import median_of
from bench.testbed.results import Plot

RATES, CONNECTIONS, WORKERS = "callbacks/s offered", "connections", "workers"
DUPLICATES = "% duplicates"
ONE_CHUNK, SEVERAL_CHUNKS = "rows in one chunk", "rows in many chunks"
REMEMBERED = "events in Redis"
HEADINGS = (
    "at", "of", "answers/s", "gateway, µs", "database, µs", "Redis, µs",
    "p50, ms", "p95, ms", "p99, ms", "p99.9, ms", "more",
)  # fmt: skip


class Curves(msgspec.Struct):
    """The raw figures of every round, by curve and point."""

    latencies: dict[int, list[LatencyRound]] = {}  # by callbacks/s offered
    peaks: dict[str, dict[int, list[PeakRound]]] = {}
    redis_bytes: dict[int, int] = {}  # by remembered events
    table: Footprint = Footprint(0, 0, 0)
    idle_bytes: int = 0  # memory of a worker before its first request

    def problems(self) -> list[str]:
        """Return every round whose answers and rows do not agree."""
        curves: list[tuple[str, Mapping[int, Sequence[PeakRound | LatencyRound]]]]
        curves = [(RATES, self.latencies), *self.peaks.items()]
        return [
            f"{point:,} {curve}, round {number}: {round_.problem}"
            for curve, points in curves
            for point, several in points.items()
            for number, round_ in enumerate(several, 1)
            if round_.problem
        ]


class CurvesResults(results.Results, frozen=True, kw_only=True):
    """One run."""

    schedule: CurvesSchedule
    curves: Curves


def rows(curves: Curves) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table: one for each point, with medians of its rounds."""
    for rate, rounds in sorted(curves.latencies.items()):
        yield _latency_row(rate, rounds)
    for curve, points in curves.peaks.items():
        for point, several in sorted(points.items()):
            yield _peak_row(curve, point, several)
    blank = [""] * (len(HEADINGS) - 3)
    for keys, size in sorted(curves.redis_bytes.items()):
        yield f"{keys:,}", REMEMBERED, *blank, f"{size / keys:.0f} bytes each"
    table = curves.table
    parts = [size / max(1, table.rows) for size in (table.table_bytes, table.indexes_bytes)]
    each = f"{sum(parts):.0f} bytes each: table {parts[0]:.0f}, indexes {parts[1]:.0f}"
    yield f"{table.rows:,}", "rows on disk", *blank, each
    yield "1", "idle worker", *blank, f"{curves.idle_bytes / MB:.0f} MB"


def _latency_row(rate: int, rounds: Sequence[LatencyRound]) -> tuple[str, ...]:
    late, refused = sum(r.k6.late for r in rounds), sum(r.k6.unanswered for r in rounds)
    more = {"not sent in time": late, "refused": refused}
    answered = median_of(r.k6.offered * r.k6.sent / (r.k6.sent + r.k6.late) for r in rounds)
    return (
        f"{rate:,}", RATES, f"{answered:,.0f}", *[""] * len(COSTS),
        *(f"{median_of(of(r) for r in rounds):.1f}" for of in PERCENTILES.values()),
        ", ".join(f"{number:,} {what}" for what, number in more.items() if number),
    )  # fmt: skip


def _peak_row(curve: str, point: int, rounds: Sequence[PeakRound]) -> tuple[str, ...]:
    return (
        f"{point:,}", curve, f"{median_of(r.rate for r in rounds):,.0f}",
        *(f"{median_of(of(r) for r in rounds):.1f}" for of in COSTS.values()),
        f"{median_of(r.wrk.p50_ms for r in rounds):.1f}",
        f"{median_of(r.wrk.p95_ms for r in rounds):.1f}",
        f"{median_of(r.wrk.p99_ms for r in rounds):.1f}", "",
        f"{median_of(r.peak_memory_bytes for r in rounds) / MB:.0f} MB a worker",
    )  # fmt: skip


def write(report: CurvesResults, folder: Path) -> Path:
    """Write everything into a folder of the run's own, and return the report's path."""
    kind = "curves-quick" if report.schedule.is_quick else "curves"
    text = [
        "# The gateway over rate, connections, table size, duplicates and workers",
        "",
        *report.facts(),
        "",
        "Medians of rounds; every round is in `results.json`. Costs are CPU of each process for",
        "one callback. k6 offers the fixed rates, and takes more of the same cores than the",
        "gateway; wrk offers everything else, with 64 connections unless stated.",
        "",
        markdown_table(HEADINGS, rows(report.curves)),
        *(f"- {problem}" for problem in report.curves.problems()),
    ]
    return results.write(report, kind, folder, text, plots(report.curves))


def plots(curves: Curves) -> Iterator[Plot]:
    """Return a plot for each curve."""
    title = "Latency over callbacks/s offered (k6, open loop), ms"
    yield Plot("rate", title, partial(_latencies, curves.latencies))
    title = "Answers/s over connections (wrk, closed loop)"
    yield Plot("connections", title, partial(_rates, curves.peaks[CONNECTIONS]))
    sizes = {name: curves.peaks[name] for name in (ONE_CHUNK, SEVERAL_CHUNKS)}
    yield Plot("rows", "CPU per event over rows in the table, µs", partial(_costs, sizes))
    shares = {DUPLICATES: curves.peaks[DUPLICATES]}
    yield Plot("duplicates", "CPU per callback over % of duplicates, µs", partial(_costs, shares))
    yield Plot("workers", "Answers/s with workers", partial(_workers, curves.peaks[WORKERS]))
    title = "Bytes of Redis over remembered events, each"
    yield Plot("redis", title, partial(_bytes, curves.redis_bytes))


def _latencies(points: Mapping[int, list[LatencyRound]], axes: Axes) -> None:
    for label, of in PERCENTILES.items():
        values = [median_of(of(r) for r in several) for _, several in sorted(points.items())]
        axes.plot(sorted(points), values, "o-", markersize=3, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("ms")
    axes.set_xlabel(RATES)
    axes.legend()


def _rates(points: Mapping[int, list[PeakRound]], axes: Axes) -> None:
    for point, several in sorted(points.items()):
        axes.plot([point] * len(several), [r.rate for r in several], "k.", markersize=4)
    axes.plot(
        sorted(points),
        [median_of(r.rate for r in several) for _, several in sorted(points.items())],
    )
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(CONNECTIONS)


def _costs(curves: Mapping[str, Mapping[int, list[PeakRound]]], axes: Axes) -> None:
    for (curve, points), line in zip(curves.items(), ("o-", "x--"), strict=False):
        axes.set_prop_cycle(None)
        for label, of in COSTS.items():
            values = [median_of(of(r) for r in several) for _, several in sorted(points.items())]
            several_curves = f", {curve}" if len(curves) > 1 else ""
            axes.plot(sorted(points), values, line, markersize=4, label=label + several_curves)
        if curve != DUPLICATES:
            axes.set_xscale("symlog", linthresh=100_000)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("µs")
    axes.legend(fontsize=7)


def _workers(points: Mapping[int, list[PeakRound]], axes: Axes) -> None:
    names = [str(point) for point in sorted(points)]
    axes.barh(
        names,
        [median_of(r.rate for r in several) for _, several in sorted(points.items())],
        alpha=0.6,
    )
    for point, several in points.items():
        axes.plot([r.rate for r in several], [str(point)] * len(several), "k.", markersize=4)
    axes.set_ylabel(WORKERS)


def _bytes(points: Mapping[int, int], axes: Axes) -> None:
    axes.plot(sorted(points), [size / keys for keys, size in sorted(points.items())], "o-")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(REMEMBERED)
