"""`bench neighbours`: its limits, and a short run."""

from pathlib import Path

import pytest

from bench.neighbours.command import ALONE, Neighbours, run
from bench.neighbours.disturbances import DISTURBANCES
from bench.testbed.console import Progress


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
    """A missed limit is named, and nothing else."""
    assert row.misses(measured(ALONE, 0.001, 0.001, 0.001, 0.002)) == missed


def test_limit_grows_with_the_wait_alone() -> None:
    """The limit is six times the wait without a disturbance."""
    row = measured("strangers", 0.01, 0.01, 0.01, 0.1)
    assert row.misses(measured(ALONE, 0.01, 0.01, 0.01, 0.02)) == ""


@pytest.mark.services
async def test_every_callback_is_written_beside_disturbances(tmp_path: Path) -> None:
    """Beside each disturbance every callback is written.

    Their waits need a quiet machine. Beside thousands of unfinished heads not every callback is
    written yet: the bench alone measures that.
    """
    names = [name for name in DISTURBANCES if name != "unfinished_heads"]
    with Progress(len(names) + 1, "rounds") as progress:
        rows, _ = await run(progress, names=names, duration_s=2, folder=tmp_path)
    assert [row.beside for row in rows] == [ALONE, *names]
    assert all(row.written == row.sent > 0 for row in rows)
