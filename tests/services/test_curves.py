"""`bench curves`: every point is measured and reported."""

from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from bench.performance import curves, curves_report
from bench.performance.curves_report import (
    CONNECTIONS,
    DUPLICATES,
    ONE_CHUNK,
    SEVERAL_CHUNKS,
    WORKERS,
    Curves,
)
from bench.performance.measure import Footprint, LatencyRound
from bench.performance.schedules import QUICK_CURVES, CurvesSchedule
from bench.testbed.load import Latency
from bench.testbed.machine import describe_machine
from tests.services.test_bench import peak

PLOTS = {"rate", "connections", "rows", "duplicates", "workers", "redis"}


def latency(rate: int, late: int, unanswered: int) -> LatencyRound:
    """A round at a fixed rate."""
    k6 = Latency(float(rate), rate - late, 9, 0, 0, unanswered, late, 1.0, 2.0, 3.0, 4.0)
    return LatencyRound(9, k6)


@pytest.fixture
def measured() -> Curves:
    """A run with two points on each curve."""
    points = {1: [peak(100, 40), peak(300, 50), peak(900, 90)], 64: [peak(8_000, 60)]}
    names = (CONNECTIONS, DUPLICATES, WORKERS, ONE_CHUNK, SEVERAL_CHUNKS)
    return Curves(
        {1_000: [latency(1_000, 0, 0)], 10_000: [latency(10_000, 2_500, 7)]},
        dict.fromkeys(names, points),
        {1_000: 151_000},
        Footprint(100, 30_000, 12_000),
        54 * 1024**2,
    )


def test_each_point_has_its_row(measured: Curves) -> None:
    """A row for each point, of medians, with the callbacks that the load could not send."""
    table = {(row[1], row[0]): row[2:] for row in curves_report.rows(measured)}
    assert table[CONNECTIONS, "1"][:2] == ("300", "50.0")
    assert table["callbacks/s offered", "10,000"][0] == "7,500"
    assert table["callbacks/s offered", "10,000"][-1] == "2,500 not sent in time, 7 refused"
    assert table["callbacks/s offered", "1,000"][-1] == ""
    assert table["events in Redis", "1,000"][-1] == "151 bytes each"
    assert table["rows on disk", "100"][-1] == "420 bytes each: table 300, indexes 120"
    assert all(len(row) == len(curves_report.HEADINGS) for row in curves_report.rows(measured))


def test_round_with_missing_rows_is_named(measured: Curves) -> None:
    """A round whose rows and answers do not agree is named."""
    assert measured.problems() == []
    measured.peaks[WORKERS] = {2: [peak(1, 1), peak(1, 1, "3 rows are missing")]}
    assert measured.problems() == ["2 workers, round 2: 3 rows are missing"]


def test_report_has_plots_and_rounds(measured: Curves, tmp_path: Path) -> None:
    """The report shows every plot, and the JSON has every round."""
    now = datetime.now(UTC)
    report = curves_report.CurvesResults(
        began=now,
        ended=now,
        machine=describe_machine("these servers"),
        schedule=CurvesSchedule(),
        curves=measured,
    )
    path = curves_report.write(report, tmp_path)
    text = path.read_text()
    for name in PLOTS:
        assert f"({name}.svg)" in text
        assert b"<svg" in (path.parent / f"{name}.svg").read_bytes()
    read = msgspec.json.decode(
        (path.parent / "results.json").read_bytes(), type=dict[str, msgspec.Raw]
    )
    assert msgspec.json.decode(read["curves"], type=Curves) == measured


@pytest.mark.services
async def test_quick_curves(tmp_path: Path) -> None:
    """Every curve has its points, and every answered callback is a row."""
    schedule = QUICK_CURVES
    found, _ = await curves.run(schedule, tmp_path)
    assert found.problems() == []
    assert set(found.latencies) == set(schedule.rates)
    assert set(found.peaks[CONNECTIONS]) == set(schedule.connections)
    assert set(found.peaks[DUPLICATES]) == set(schedule.duplicates)
    assert set(found.peaks[WORKERS]) == set(schedule.workers)
    assert set(found.peaks[ONE_CHUNK]) == set(found.peaks[SEVERAL_CHUNKS]) == set(schedule.rows)
    assert len(found.redis_bytes) == len(schedule.remembered)
    assert 100 < found.table.table_bytes / found.table.rows < 1_000
