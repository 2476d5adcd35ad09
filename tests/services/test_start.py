"""The first moments of the process and its last: signals, files, addresses, reads that hang."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from app.commands.serve import OPEN_FILES_MIN
from app.http import server as serve
from app.settings import read_settings
from bench.testbed.client import UNANSWERED, get
from bench.testbed.process import PATIENCE_S, ROOT, bound, inherited
from tests.gateways import Process, query
from tests.services.test_serve import workers_of

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
RUNS = Callable[..., Process]
COMMAND = [sys.executable, "-m", "app", "serve"]
ENDED = {signal.SIGTERM: 143, signal.SIGINT: 130}


def heard(pid: int) -> bool:
    """Whether a process has handlers for the signals that end it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    caught = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt"))
    return all(caught >> (number - 1) & 1 for number in ENDED)


def has_imported(pid: int, library: str) -> bool:
    """Whether a process has imported a library, of which a part is written in C."""
    return library in Path(f"/proc/{pid}/maps").read_text()


async def test_signals_are_handled_from_the_first_moment(run: RUNS) -> None:
    """Both have a handler before anything of weight is imported, and until the process ends."""
    with run() as process, suppress(FileNotFoundError, ProcessLookupError, StopIteration):
        was_heard, is_ready = 0, False
        while not is_ready or was_heard < 100:
            # First: by now it must have its handlers.
            imported = has_imported(process.pid, "msgspec")
            is_heard = heard(process.pid)
            assert is_heard or not (imported or was_heard)
            was_heard += is_heard
            is_ready = b'"serving"' in process.log.read_bytes()
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("command", "needed", "not_needed"),
    [
        (["-m", "app", "--version"], "app.version", {"asyncpg", "msgspec", "redis", "sanic"}),
        (["-m", "app", "serve"], "app.http.lifecycle", {"app.claims.status", "app.replay"}),
        (["-c", "import app.commands.migrate"], "asyncpg", {"redis", "sanic"}),
        (["-c", "import app.commands.check"], "asyncpg", {"sanic"}),
    ],
)
def test_command_imports_only_its_own_modules(
    command: list[str], needed: str, not_needed: set[str]
) -> None:
    """A command starts without the imports of another, and without the development servers."""
    ended = subprocess.run(
        [sys.executable, "-X", "importtime", *command],
        cwd=ROOT,
        env=inherited(),
        capture_output=True,
        text=True,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in ended.stderr.splitlines()}
    assert needed in imported
    assert not imported & {*not_needed, "app.dev"}


@contextmanager
def as_number_one(process: Process) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Start a gateway as number 1 of processes of its own; yields its parent process and its ID."""
    unshare = shutil.which("unshare")
    alone = [unshare or "", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if not unshare or subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("processes cannot be numbered anew here")
    with process.log.open("ab") as log:
        popen = subprocess.Popen(
            bound([*alone, *COMMAND]),
            cwd=ROOT,
            env=inherited() | process.environ,
            stdout=log,
            stderr=log,
        )
    try:
        children = Path(f"/proc/{popen.pid}/task/{popen.pid}/children")
        deadline = time.monotonic() + PATIENCE_S
        while not children.read_text():
            assert time.monotonic() < deadline
        yield popen, int(children.read_text())
    finally:
        popen.kill()
        popen.wait()


@pytest.mark.parametrize("number", ENDED)
async def test_number_one_ends_by_a_signal(run: RUNS, number: signal.Signals) -> None:
    """In a container a signal that comes early ends the process too, without a traceback."""
    process = run()
    for library in ("", "asyncpg", "msgspec", "uvloop"):
        before = process.log.read_text() if process.log.exists() else ""
        with as_number_one(process) as (popen, pid):
            async with asyncio.timeout(PATIENCE_S):
                while not (heard(pid) and has_imported(pid, library)):
                    await asyncio.sleep(0)
            os.kill(pid, number)
            assert await asyncio.to_thread(popen.wait, PATIENCE_S) in (ENDED[number], 0)
        log = process.log.read_text().removeprefix(before)
        assert all(json.loads(line) for line in log.splitlines())


async def test_number_one_drains(run: RUNS) -> None:
    """In a container that serves, a signal is a drain, and the exit code is 0."""
    process = run()
    with as_number_one(process) as (popen, pid):
        await asyncio.to_thread(process.wait_until_ready)
        os.kill(pid, signal.SIGTERM)
        assert await asyncio.to_thread(popen.wait, PATIENCE_S) == 0


@pytest.mark.parametrize("command", ["serve", "check", "migrate"])
def test_interrupt_has_no_traceback(run: RUNS, command: str) -> None:
    """Ctrl-C while the modules are being imported ends each command without a traceback."""
    process = subprocess.Popen(
        [*COMMAND[:-1], command], cwd=ROOT, env=inherited() | run().environ, stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + PATIENCE_S
    while not heard(process.pid):
        assert time.monotonic() < deadline
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == -signal.SIGINT
    assert errors == b""


async def test_interrupted_workers_have_no_traceback(run: RUNS) -> None:
    """Ctrl-C, which the terminal sends to every process, is handled by the parent."""
    process = run(WORKERS="2")
    for delay_s in (0.05, 0.2, 0.4):  # at different moments of the start of the workers
        started = await asyncio.create_subprocess_exec(
            *COMMAND,
            cwd=ROOT,
            env=inherited() | process.environ,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not workers_of(started.pid):
                    await asyncio.sleep(0)
                await asyncio.sleep(delay_s)
                os.killpg(started.pid, signal.SIGINT)
                _, errors = await started.communicate()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(started.pid, signal.SIGKILL)
        assert b"Traceback" not in errors, errors.decode()
        assert started.returncode == 0


async def test_file_whose_read_hangs_does_not_delay_the_end(run: RUNS) -> None:
    """While the workspaces file cannot be read, callbacks are served, and a signal is a drain."""
    with run() as process, ExitStack() as stack:
        await asyncio.to_thread(process.wait_until_ready)
        path = process.folder / "workspaces.toml"
        path.unlink()
        os.mkfifo(path)
        stack.callback(path.unlink)
        async with asyncio.timeout(PATIENCE_S):
            while (await process.metrics()).get("flokit_workspaces_refused") != 1:
                await asyncio.sleep(0.05)
        assert (await process.callback()).json == WRITTEN
        assert "the workspaces file is not read" in process.log.read_text()
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0


HANGING_THREAD = """
import argparse, asyncio, sys, threading
from app.http.server import Server

async def start(server):
    asyncio.ensure_future(asyncio.to_thread(threading.Event().wait))
    await go_on(server)

go_on, Server.start = Server.start, start
from app.commands.serve import run
if __name__ == "__main__":
    sys.exit(run(argparse.Namespace()))
"""


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_thread_that_hangs_does_not_delay_the_end(run: RUNS, workers: str) -> None:
    """A thread that never returns, such as one that reads from a lost volume, is left behind."""
    process = run(WORKERS=workers)
    script = process.folder / "script.py"
    script.write_text(HANGING_THREAD)
    with process.log.open("ab") as log:
        started = await asyncio.create_subprocess_exec(
            *bound([sys.executable, str(script)]),
            env=inherited() | process.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
        )
    try:
        async with asyncio.timeout(PATIENCE_S):
            while process.log.read_text().count('"serving"') < int(workers):
                await asyncio.sleep(0.02)
            started.send_signal(signal.SIGTERM)
            assert await started.wait() == 0
    finally:
        with suppress(ProcessLookupError):
            started.kill()
        await started.wait()


def has_ipv6() -> bool:
    """Whether this machine has IPv6."""
    with suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize(
    ("host", "answers"),
    [("::", {"127.0.0.1", "::1"}), ("0.0.0.0", {"127.0.0.1"}), ("::1", {"::1"})],  # noqa: S104
)
async def test_wildcard_of_ipv6_takes_both(run: RUNS, host: str, answers: set[str]) -> None:
    """`::` is every address of the machine, also those of IPv4; other addresses are themselves."""
    settings = read_settings(run(HOST=host).environ)
    with serve.listen(settings):
        for address in ("127.0.0.1", "::1"):
            is_open = False
            with suppress(OSError), socket.create_connection((address, settings.port), 5):
                is_open = True
            assert is_open == (address in answers)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
async def test_ipv4_caller_of_a_dual_socket_is_on_the_allowlist(run: RUNS) -> None:
    """A caller by IPv4 has its IPv4 address on the allowlist."""
    with run(HOST="::", ADJUST_IP_ALLOWLIST="127.0.0.1") as process:
        await asyncio.to_thread(process.wait_until_ready)
        assert (await get(process.port, f"/ingest/adjust?{query()}")).json == WRITTEN


@pytest.mark.parametrize("files", [20, 64, OPEN_FILES_MIN - 1, OPEN_FILES_MIN])
async def test_too_few_open_files_are_refused(run: RUNS, files: int) -> None:
    """A limit that leaves no room for connections is one line that names it, and exit code 2."""
    process = run()
    limited = ["sh", "-c", f'ulimit -Sn {min(files, 40)}; ulimit -Hn {files}; exec "$@"', "sh"]
    started = await asyncio.create_subprocess_exec(
        *bound([*limited, *COMMAND]),
        cwd=ROOT,
        env=inherited() | process.environ,
        stderr=subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            if files < OPEN_FILES_MIN:
                _, errors = await started.communicate()
                (line,) = errors.decode().splitlines()
                assert line.startswith("open files (ulimit -Hn): ")
                assert str(files) in line
                assert started.returncode == 2
            else:
                await asyncio.to_thread(process.wait_until_ready)
                answers = await asyncio.gather(*(get(process.port, "/healthz") for _ in range(20)))
                assert UNANSWERED not in answers
    finally:
        with suppress(ProcessLookupError):
            started.kill()
        await started.communicate()
