"""`bench neighbours` and `bench flood`: their limits, and a short run of each."""

from pathlib import Path

import pytest

from bench.neighbours import flood
from bench.neighbours.command import ALONE, Neighbours, run
from bench.neighbours.disturbances import DISTURBANCES
from bench.neighbours.flood_report import Flood, Round, rows
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


def flooded(**changes: object) -> Flood:
    """A run that keeps every promise, with changes."""
    alone, beside = Round(4, 4, [0.001, 0.002]), Round(4, 4, [0.002, 0.004], drops=4_000)
    kept = Flood(
        200, 5_000, 4_000, [alone] * 3, [Round(4, 4, [0.1, 9]), beside, beside],
        counted=9, rows=9, share_bytes=2e6, used_bytes=1_990_000, singles=5, singles_kept=5,
    )  # fmt: skip
    for name, value in changes.items():
        setattr(kept, name, value)
    return kept


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, []),
        ({"beside": [Round(4, 4, [0.002, 0.005], drops=4_000)]}, [0]),
        ({"rate": 4_500}, [1]),
        ({"alone": [Round(4, 3, [0.001, 0.002])]}, [2]),
        ({"rows": 8}, [3]),
        ({"used_bytes": 2_000_001}, [4]),
        ({"used_bytes": 1_000_000}, [4]),
        ({"singles_kept": 4}, [5]),
        ({"singles": 0, "singles_kept": 0}, [5]),
    ],
)
def test_broken_promise_beside_a_flood_is_named(
    changes: dict[str, object], missed: list[int]
) -> None:
    """A line of the table is missed for its own figure alone; one bad round does not count."""
    lines = list(rows(flooded(**changes)))
    assert [place for place, line in enumerate(lines) if not line.holds] == missed
    assert all((line.verdict == "ok") is line.holds for line in lines)


@pytest.mark.services
async def test_purchases_and_drops_are_kept_in_a_flood(tmp_path: Path) -> None:
    """Every purchase is written, the flood fills its share alone, and single drops are kept.

    The waits need a quiet machine: the bench alone measures them.
    """
    schedule = flood.Schedule(rounds=1, duration_s=1, peak_s=1)
    with Progress(schedule.rounds, "rounds") as progress:
        measured, _ = await flood.run(schedule, progress, tmp_path)
    written, counted, share, singles = list(rows(measured))[2:]
    assert written.holds
    assert counted.holds
    assert share.holds
    assert singles.holds
    assert measured.rows > 0
