"""The workspaces file: changes under a running gateway, read by another process."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app import workspaces
from app.telemetry.metrics import WORKSPACES_LOADED, WORKSPACES_REFUSED
from app.workspaces import Workspaces
from tests.unit.test_workspaces import VENDORS, WRONG, app, table, written

PROMISE_S, TURN_S = 5.0, 0.01


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A workspaces file with the app `old`."""
    return written(tmp_path / "workspaces.toml", app(name='"old"'))


@asynccontextmanager
async def watched(path: Path) -> AsyncIterator[Workspaces]:
    """The workspaces of a file while it is being watched; fails if the watch ended."""
    WORKSPACES_REFUSED.set(0)
    found = Workspaces(path, VENDORS)
    task = asyncio.create_task(found.watch())
    try:
        yield found
        assert not task.done(), task.exception()
    finally:
        task.cancel()


async def within_promise(happened: Callable[[], bool]) -> None:
    """Return when something has happened; fails when it took longer than promised.

    The time is counted in turns of the loop: a stall of a busy machine is one of them.
    """
    for _ in range(round(PROMISE_S / TURN_S)):
        if happened():
            return
        await asyncio.sleep(TURN_S)
    pytest.fail(f"it takes longer than {PROMISE_S} s")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls the file ten times as often."""
    monkeypatch.setattr(workspaces, "POLL_S", 0.1)


def is_refused() -> bool:
    """Whether the metric reports the file on disk as refused."""
    return bool(WORKSPACES_REFUSED._value.get())


async def test_change_is_used_within_five_seconds(path: Path) -> None:
    """A changed file is used within five seconds, at the product's own pace."""
    async with watched(path) as found:
        loaded = WORKSPACES_LOADED._value.get()
        written(path, app(name='"new"'))
        await within_promise(lambda: found.find("adjust", "new") is not None)
        assert found.find("adjust", "old") is None
        assert WORKSPACES_LOADED._value.get() > loaded
        assert not is_refused()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "name", ["not TOML", "not UTF-8", "an app twice", "deep nesting", "nothing"]
)
async def test_broken_change_is_not_used(
    path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that does not decode is refused and logged once; the next valid one is used."""
    async with watched(path) as found:
        written(path, WRONG[name][0])
        await within_promise(is_refused)
        assert found.find("adjust", "old") is not None
        await asyncio.sleep(3 * workspaces.POLL_S)
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        written(path, app(name='"new"'))
        await within_promise(lambda: found.find("adjust", "new") is not None)
        assert not is_refused()


@pytest.mark.usefixtures("quick")
async def test_missing_file_changes_nothing(path: Path) -> None:
    """Without a file the last valid one stays in use, and its return ends the alarm."""
    async with watched(path) as found:
        await asyncio.to_thread(path.rename, path.with_suffix(".bak"))
        await within_promise(is_refused)
        assert found.find("adjust", "old") is not None
        await asyncio.to_thread(path.with_suffix(".bak").rename, path)
        await within_promise(lambda: not is_refused())
        assert found.find("adjust", "old") is not None


@pytest.mark.usefixtures("quick")
async def test_half_written_file_is_not_used(path: Path) -> None:
    """A file that grows meanwhile is not used before it is whole, though it decodes."""
    async with watched(path) as found:
        text = app(name='"half"')
        for number in range(100):
            text += table(name=f'"app{number}"')
            written(path, text)
            await asyncio.sleep(workspaces.POLL_S / 20)
            assert found.find("adjust", "half") is None
        written(path, text + table(name='"whole"'))
        await within_promise(lambda: found.find("adjust", "whole") is not None)
        assert not is_refused()


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A file of a ConfigMap: a link into a folder that is a link itself."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "workspaces.toml", app(name=f'"{name}"'))
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "..data_tmp").symlink_to("new")
    (tmp_path / "workspaces.toml").symlink_to("..data/workspaces.toml")
    return tmp_path / "workspaces.toml"


@pytest.mark.usefixtures("quick")
async def test_swapped_symbolic_link_is_a_change(mounted: Path) -> None:
    """Kubernetes swaps the folder behind the file, and the file's own link stays the same."""
    async with watched(mounted) as found:
        assert found.find("adjust", "old") is not None
        new, data = (mounted.with_name(name) for name in ("..data_tmp", "..data"))
        await asyncio.to_thread(new.rename, data)
        await within_promise(lambda: found.find("adjust", "new") is not None)


def written_unnoticed(path: Path, text: str) -> None:
    """Give a file other contents of the same size, and the time that it had."""
    before = path.stat()
    written(path, text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.mark.usefixtures("quick")
async def test_change_of_the_same_time_and_size_is_found(path: Path) -> None:
    """A change is found in the contents of the file, not in its size or time."""
    async with watched(path) as found:
        written_unnoticed(path, app(name='"new"'))
        await within_promise(lambda: found.find("adjust", "new") is not None)
