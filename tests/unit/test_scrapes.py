"""Tallies and series of workspaces: time of a scrape, and room."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.event import DropReason, Outcome
from app.telemetry import metrics, outcomes
from app.telemetry.exposition import exposition
from app.telemetry.metrics import BY_WORKSPACE
from app.telemetry.outcomes import count_drop, count_events
from app.telemetry.tallies import CAPACITY_MIN, Tally, read
from tests.events import event
from tests.loop_time import run_measured

HELD_MAX_S = 0.02


@pytest.fixture
def in_use() -> Iterator[Callable[[int], None]]:
    """Puts so many workspaces into use, each with callbacks of its own."""
    before = BY_WORKSPACE.in_use

    def use(number: int) -> None:
        BY_WORKSPACE.in_use = {("adjust", f"ws_{n}") for n in range(number)}
        for n in range(number):
            BY_WORKSPACE[metrics.WRITTEN].add(("adjust", f"ws_{n}"), n)
            BY_WORKSPACE[metrics.DROPPED].add(("adjust", f"ws_{n}", "invalid_timestamp"))

    yield use
    BY_WORKSPACE.in_use = before


@pytest.mark.parametrize("number", [2_000, 10_000])
@pytest.mark.no_cover
def test_scrape_holds_the_loop_20_ms_at_most(in_use: Callable[[int], None], number: int) -> None:
    """However many workspaces there are, no call of a scrape takes longer."""
    in_use(number)
    text, calls_s = run_measured(exposition())
    assert max(calls_s) < HELD_MAX_S
    for outcome in ("received", "written", "duplicate", "dropped"):
        assert text.count(f"\nflokit_callbacks_{outcome}_total{{".encode()) >= number


def test_label_values_are_escaped(in_use: Callable[[int], None]) -> None:
    """A name with special characters of the format is written as prometheus_client does."""
    in_use(0)
    name = 'a"b\\c'
    BY_WORKSPACE.in_use = {("adjust", name)}
    text = asyncio.run(exposition()).decode()
    assert 'flokit_callbacks_written_total{vendor="adjust",workspace="a\\"b\\\\c"} 0.0\n' in text


def test_workspace_that_is_gone_makes_room(tmp_path: Path) -> None:
    """A tally does not grow for workspaces that come and go."""
    wanted: set[tuple[str, ...]] = set()
    tally = Tally(wanted.__contains__)
    tally.share(tmp_path / "tally")
    for n in range(10 * CAPACITY_MIN):
        wanted.clear()
        wanted.update({("", "stays"), ("", f"ws_{n}")})
        tally.add(("", "stays"))
        tally.add(("", f"ws_{n}"))
    assert len(dict(tally.snapshot())) <= CAPACITY_MIN
    assert dict(tally.snapshot())["", "stays"] == 10 * CAPACITY_MIN
    assert dict(read(tmp_path / "tally")) == dict(tally.snapshot())


def test_tally_goes_on_where_another_process_ended(tmp_path: Path) -> None:
    """Earlier counts in the same place are kept, and counts from before `share` are added."""
    first, second = (Tally(lambda _: True) for _ in range(2))
    first.share(tmp_path / "tally")
    for n in range(CAPACITY_MIN + 1):
        first.add(("adjust", f"ws_{n}"), n)
    second.add(("adjust", "ws_1"), 5)
    second.share(tmp_path / "tally")
    second.add(("adjust", "ws_2"), 7)
    numbers = dict(read(tmp_path / "tally"))
    assert numbers == {("adjust", f"ws_{n}"): n + {1: 5, 2: 7}.get(n, 0) for n in range(65)}
    assert [path.name for path in tmp_path.iterdir()] == ["tally"]


async def test_file_that_vanishes_fails_no_scrape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gauges of a worker that ends are taken away while another worker reads them."""
    (tmp_path / "gauge_livesum_worker-1.db").symlink_to(tmp_path / "gone")
    monkeypatch.setattr(BY_WORKSPACE, "folder", tmp_path)
    assert b"flokit_callbacks_received_total" in await exposition()


def test_tally_outlives_a_file_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """New counts are lost then, everything else goes on, and no callback fails for it."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    tally = Tally(lambda labels: labels[1] != "ws_0")
    tally.share(folder / "a.tally")
    for n in range(CAPACITY_MIN):
        tally.add(("adjust", f"ws_{n}", "refused"), n)
    shutil.rmtree(folder)
    monkeypatch.setitem(BY_WORKSPACE._tallies, metrics.DROPPED, tally)
    for workspace in ("new", "ws_1"):
        count_drop("adjust", workspace, DropReason.REFUSED)
    numbers = {("adjust", f"ws_{n}", "refused"): float(n) for n in range(CAPACITY_MIN)}
    assert dict(tally.snapshot()) == numbers | {("adjust", "ws_1", "refused"): 2.0}


def test_series_that_cannot_be_made_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full, the known workspaces of a batch are counted beside a new one."""
    folder = tmp_path / "metrics"
    folder.mkdir()
    tally = Tally(lambda _: True)
    tally.share(folder / "a.tally")
    tally.add(("adjust", "known", "refused"))
    shutil.rmtree(folder)
    monkeypatch.setitem(outcomes._COUNTED, Outcome.REFUSED, (tally, ("refused",)))
    batch = [event(name, workspace_id=name) for name in ("new", "known")]
    count_events(batch, [Outcome.REFUSED] * 2)
    assert dict(tally.snapshot()) == {("adjust", "known", "refused"): 2.0}
