"""The cost of reloading a large workspaces file, and readers that get stuck."""

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import adapters
from app import workspaces
from app.telemetry.metrics import BY_WORKSPACE, WORKSPACES_REFUSED
from app.workspaces import DECODED_MAX, Workspaces
from tests.loop_time import run_measured
from tests.services.test_workspaces import watched, within_promise
from tests.unit.test_workspaces import app, table, written

VENDORS = adapters.load()
HELD_MAX_S = 0.02
PATIENCE_S = 60.0


def large(number: int, name: str = "app") -> str:
    """A file of so many apps, each in a workspace of its own."""
    return "".join(
        f'[[workspaces]]\nid = "ws_{n}"\n[[workspaces.apps]]\nvendor = "adjust"\n'
        f'app_token = "{name}{n}"\nevents = {{ a{n} = "purchase", b{n} = "install" }}\n'
        for n in range(number)
    )


async def until(happened: Callable[[], object]) -> None:
    """Return when something has happened."""
    async with asyncio.timeout(PATIENCE_S):
        while not happened():
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls the file ten times as often."""
    monkeypatch.setattr(workspaces, "POLL_S", 0.1)


@pytest.mark.parametrize("number", [5_000, 20_000])
@pytest.mark.no_cover
def test_reload_holds_the_loop_20_ms_at_most(tmp_path: Path, number: int) -> None:
    """No call of a reload takes longer, however many apps there are, nor any app's first use."""
    path = written(tmp_path / "workspaces.toml", app(name='"old"'))
    found = Workspaces(path, VENDORS)
    written(path, large(number))

    async def reload() -> None:
        watch = asyncio.create_task(found.watch())
        await until(lambda: found.find("adjust", "app0"))
        for n in range(number):
            used = found.find("adjust", f"app{n}")
            assert used is not None
            assert used.events[f"a{n}"] == "purchase"
            await asyncio.sleep(0)
        watch.cancel()

    _, calls_s = run_measured(reload())
    assert max(calls_s) < HELD_MAX_S
    assert len(found._decoded) <= DECODED_MAX
    assert len(BY_WORKSPACE.in_use) == number


async def test_file_that_hangs_is_reported_and_delays_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a read hangs, the metric reports it, the last valid file is used, and reloads go on."""
    monkeypatch.setattr(workspaces, "POLL_TIMEOUT_S", 0.2)
    path = written(tmp_path / "workspaces.toml", app(name='"old"'))
    async with watched(path) as found:
        path.unlink()
        os.mkfifo(path)  # a reader that opens it waits for a writer
        await until(WORKSPACES_REFUSED._value.get)
        assert found.find("adjust", "old") is not None
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        with path.open("wb"):
            path.unlink()
        written(path, app(name='"new"'))
        await within_promise(lambda: found.find("adjust", "new") is not None)
        await within_promise(lambda: not WORKSPACES_REFUSED._value.get())


@pytest.mark.parametrize(
    "program",
    ["time.sleep(60)", "os.abort()", "print('digest')", r"print('digest\tx')", "print('x')"],
)
async def test_failed_reader_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """A reader that hangs, dies or ends too early is logged, ended, and followed by another one."""
    (tmp_path / "stuck.py").write_text(f"import os, time\n{program}\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(workspaces, "READ_TIMEOUT_S", 0.5)
    path = written(tmp_path / "workspaces.toml", app(name='"old"'))
    async with watched(path) as found:
        with monkeypatch.context() as patch:
            patch.setattr(workspaces, "READER", "stuck")
            written(path, app(name='"new"'))
            await until(WORKSPACES_REFUSED._value.get)
            assert found.find("adjust", "old") is not None
        monkeypatch.setattr(workspaces, "READ_TIMEOUT_S", PATIENCE_S)
        await until(lambda: found.find("adjust", "new"))
        assert not WORKSPACES_REFUSED._value.get()


async def test_reader_ends_with_the_watch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A watch that ends while a reader is at work leaves no process behind."""
    (tmp_path / "stuck.py").write_text(
        f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()) + ' ')\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(workspaces, "READER", "stuck")
    path = written(tmp_path / "workspaces.toml", app(name='"old"'))
    found = Workspaces(path, VENDORS)
    watch = asyncio.create_task(found.watch())
    written(path, app(name='"new"') + table(name='"more"'))
    pid = tmp_path / "pid"
    await until(lambda: pid.exists() and pid.read_text().endswith(" "))
    watch.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watch
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_watch_outlives_a_lack_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread is to be had this is logged, and a change is used once there is one again."""
    path = written(tmp_path / "workspaces.toml", app(name='"old"'))

    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async with watched(path) as found:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            await until(WORKSPACES_REFUSED._value.get)
        written(path, app(name='"new"'))
        await until(lambda: found.find("adjust", "new"))
        await until(lambda: not WORKSPACES_REFUSED._value.get())
