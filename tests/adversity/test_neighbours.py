"""The bench on neighbours: what it computes, and a short run of it, so that it can never rot."""

from pathlib import Path

import pytest

from bench.neighbours.command import ALONE, Neighbours, print_neighbours, run
from bench.neighbours.disturbances import DISTURBANCES
from bench.testbed.report import Progress


def measured(beside: str, *latencies: float, written: int = 4, bypassed: int = 0) -> Neighbours:
    """A row of four callbacks."""
    return Neighbours(beside, 4, written, latencies, bypassed, 0)


@pytest.mark.parametrize(
    ("row", "missed"),
    [
        (measured("strangers", 0.001, 0.001, 0.001, 0.04), ""),
        (measured("strangers", 0.001, 0.001, 0.001, 0.041), "p99"),
        (measured("scrape", 0.001, 0.001, 0.04, 0.061), "p99, longest"),
        (measured("reload", 0.001, 0.001, 0.001, 0.03), ""),
        (measured("reload", 0.001, 0.001, 0.001, 0.03, written=3), "not 200"),
        (measured("reload", 0.001, 0.001, 0.001, 0.03, bypassed=1), "Redis"),
    ],
)
def test_misses_are_named(row: Neighbours, missed: str) -> None:
    """A limit that is not kept is named, and nothing else."""
    assert row.misses(measured(ALONE, 0.001, 0.001, 0.001, 0.002)) == missed


def test_limit_grows_with_what_is_usual() -> None:
    """Where callbacks wait for long anyway, six times as long is allowed."""
    row = measured("strangers", 0.01, 0.01, 0.01, 0.1)
    assert row.misses(measured(ALONE, 0.01, 0.01, 0.01, 0.02)) == ""


@pytest.mark.services
async def test_neighbours(tmp_path: Path) -> None:
    """Beside each disturbance every callback is written.

    How long they wait is for a quiet machine to say. Beside thousands of unfinished heads not
    every callback is written yet: this is measured by the bench alone.
    """
    names = [name for name in DISTURBANCES if name != "unfinished_heads"]
    with Progress(len(names) + 1, "rounds") as progress:
        rows = await run(progress, names=names, duration_s=2, folder=tmp_path)
    print_neighbours(rows)
    assert [row.beside for row in rows] == [ALONE, *names]
    assert all(row.written == row.sent > 0 for row in rows)
