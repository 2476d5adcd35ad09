"""The report of `compare`: JSON with every figure, and Markdown with plots."""

from collections.abc import Iterable
from pathlib import Path

from bench.performance.compare_plots import plots
from bench.performance.measure import PERCENTILES
from bench.performance.schedules import CompareSchedule
from bench.performance.targets import Rounds, Verdict
from bench.testbed import results
from bench.testbed.console import markdown_table
from bench.testbed.figures import median_of

HEADINGS = ("figure", "target", "measured", "verdict")


class CompareResults(results.Results, frozen=True, kw_only=True):
    """One run."""

    schedule: CompareSchedule
    rounds: Rounds
    verdicts: list[Verdict]


def rows(report: CompareResults) -> Iterable[tuple[str, str, str, str]]:
    """Return the table of targets; the figures of a short run are too inexact for a verdict."""
    for verdict in report.verdicts:
        is_judged = report.schedule.is_judged or verdict is report.verdicts[-1]
        judged = verdict.verdict if is_judged else "not judged"
        yield verdict.figure, verdict.target, verdict.measured, judged


def write(report: CompareResults, folder: Path) -> Path:
    """Write everything into a folder of the run's own, and return the report's path."""
    kind = "compare" if report.schedule.is_judged else "quick"
    return results.write(report, kind, folder, _markdown(report), plots(report.rounds))


def _markdown(report: CompareResults) -> list[str]:
    pools = report.rounds.pool_rates.items()
    problems = [f"- {problem}" for problem in report.rounds.problems()]
    return [
        "# The gateway beside floors and peers",
        "",
        *report.facts(),
        f"- {report.rounds.filled_rows:,} rows in the full table",
        f"- the afternoon version with a pool of {report.rounds.pool_size}, its best; answers/s: "
        + ", ".join(f"{median_of(rates):,.0f} with {size}" for size, rates in pools),
        "",
        "Medians of rounds; every round is in `results.json`.",
        "",
        markdown_table(HEADINGS, rows(report)),
        *([*problems, ""] if problems else []),
        "## Peak: wrk, closed loop",
        "",
        markdown_table(("", "answers/s", *_COSTS), _peak_rows(report.rounds)),
        "## At a fixed rate: k6, open loop",
        "",
        markdown_table(
            ("", "offered/s", *_PERCENTILES, "not sent in time"), _latency_rows(report.rounds)
        ),
    ]


_COSTS = (
    "server, µs",
    "of it in user mode, µs",
    "database, µs",
    "Redis, µs",
    "memory of the server, MB",
)
_PERCENTILES = tuple(f"{name}, ms" for name in PERCENTILES)


def _peak_rows(rounds: Rounds) -> Iterable[tuple[object, ...]]:
    for name, several in rounds.peaks.items():
        yield (
            name,
            round(median_of(r.rate for r in several)),
            f"{median_of(r.cost.server_us for r in several):.1f}",
            f"{median_of(r.cost.server_user_us for r in several):.1f}",
            f"{median_of(r.cost.database_us for r in several):.1f}",
            f"{median_of(r.cost.redis_us for r in several):.1f}",
            round(max(r.peak_memory_bytes for r in several) / 1024**2),
        )


def _latency_rows(rounds: Rounds) -> Iterable[tuple[object, ...]]:
    for name, several in rounds.latencies.items():
        yield (
            name,
            round(median_of(r.k6.offered for r in several)),
            *(median_of(of(r) for r in several) for of in PERCENTILES.values()),
            sum(r.k6.late for r in several),
        )
