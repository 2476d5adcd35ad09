"""The process: it starts without its services, drains, and never prints a secret."""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from app.http.connection_limits import CONNECTIONS_MAX, RESERVED_FILES
from bench.testbed.client import UNANSWERED, get, head, read_answer
from bench.testbed.process import PATIENCE_S, ROOT, inherited
from tests.gateways import PATIENT, SECRET, Gateways, Process, query

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
RUNS = Callable[..., Process]


async def test_drain_answers_then_ends(run: RUNS) -> None:
    """On SIGTERM readiness turns red at once, callbacks get a last answer, then it ends."""
    with run(DRAIN_PAUSE_S="5") as process:
        await asyncio.to_thread(process.wait_until_ready)
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(head("GET", f"/ingest/adjust?{query(user_id='before')}"))
        answer = await read_answer(reader)
        assert (answer.json, answer.headers["connection"]) == (WRITTEN, "keep-alive")
        process.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            while (await get(process.port, "/readyz")).status != 503:
                await asyncio.sleep(0.01)
        assert (await get(process.port, "/healthz")).status == 200
        # A new connection and the one that was kept alive are both served, and both closed.
        assert (await process.callback(user_id="new")).json == WRITTEN
        writer.write(head("GET", f"/ingest/adjust?{query(user_id='kept')}"))
        answer = await read_answer(reader)
        assert (answer.json, answer.headers["connection"]) == (WRITTEN, "close")
        assert await reader.read() == b""
        writer.close()
        assert await asyncio.to_thread(process.wait) == 0


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_drain_answers_callbacks_in_flight(
    run: RUNS, gateways: Gateways, workers: str
) -> None:
    """Accepted callbacks are committed and answered, when new connections are long refused."""
    with run(WORKERS=workers, **PATIENT) as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with gateways.held_writes():
            in_flight = asyncio.create_task(process.callback())
            async with asyncio.timeout(PATIENCE_S):
                while (await process.buffered()) == 0:
                    await asyncio.sleep(0.01)
            process.signal(signal.SIGTERM)
            async with asyncio.timeout(PATIENCE_S):
                while await get(process.port, "/healthz") != UNANSWERED:
                    await asyncio.sleep(0.01)
            assert not in_flight.done()
        assert (await in_flight).json == WRITTEN
        assert await asyncio.to_thread(process.wait) == 0


async def test_drain_answers_requests_that_have_arrived(run: RUNS) -> None:
    """A request that came before the last moment is answered, on any connection."""
    with run() as process:
        await asyncio.to_thread(process.wait_until_ready)
        kept = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(40)]
        for reader, writer in kept:
            writer.write(head("GET", "/healthz"))
            assert (await read_answer(reader)).status == 200
        # The kernel accepts for a process that stands still. Then all comes to it at once.
        process.signal(signal.SIGSTOP)
        new = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(40)]
        for number, (_, writer) in enumerate(kept + new):
            writer.write(head("GET", f"/ingest/adjust?{query(user_id=f'u{number}')}"))
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
        answers = await asyncio.gather(*(read_answer(reader) for reader, _ in kept + new))
        assert [answer.status for answer in answers] == [200] * 80
        assert all(answer.json == WRITTEN for answer in answers)
        assert await asyncio.to_thread(process.wait) == 0
        for _, writer in kept + new:
            writer.close()


async def test_request_half_received_at_the_drain_is_served(run: RUNS) -> None:
    """A request that ends after the listener is closed is served like any other."""
    with run() as process:
        await asyncio.to_thread(process.wait_until_ready)
        reader, writer = await asyncio.open_connection("127.0.0.1", process.port)
        _, gives_up = await asyncio.open_connection("127.0.0.1", process.port)
        request = head("GET", f"/ingest/adjust?{query()}")
        for half in (writer, gives_up):
            half.write(request[:40])
        await process.metrics()  # by now both halves have been received
        process.signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            while await get(process.port, "/healthz") != UNANSWERED:
                await asyncio.sleep(0.01)
        gives_up.transport.abort()
        writer.write(request[40:])
        answer = await read_answer(reader)
        assert (answer.json, answer.headers["connection"]) == (WRITTEN, "close")
        assert await asyncio.to_thread(process.wait) == 0
        writer.close()


async def test_hundreds_of_callers_may_connect_at_once(run: RUNS) -> None:
    """Hundreds may connect while the process is busy: none is turned away or made to wait."""
    with run() as process:
        await asyncio.to_thread(process.wait_until_ready)
        process.signal(signal.SIGSTOP)
        try:
            async with asyncio.timeout(PATIENCE_S):
                connections = await asyncio.gather(
                    *(asyncio.open_connection("127.0.0.1", process.port) for _ in range(400))
                )
        finally:
            process.signal(signal.SIGCONT)
        for _, writer in connections:
            writer.write(head("GET", "/healthz"))
        answers = await asyncio.gather(*(read_answer(reader) for reader, _ in connections))
        assert {answer.status for answer in answers} == {200}
        for _, writer in connections:
            writer.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_idle_connections_do_not_delay_the_end(run: RUNS, number: signal.Signals) -> None:
    """Idle connections do not delay the end of the process."""
    with run() as process:
        await asyncio.to_thread(process.wait_until_ready)
        _, writer = await asyncio.open_connection("127.0.0.1", process.port)
        started = time.monotonic()
        process.signal(number)
        assert await asyncio.to_thread(process.wait) == 0
        # Callbacks in flight would be given 15 s, and the connection is kept alive for 75 s.
        assert time.monotonic() - started < 10
        writer.close()


async def test_low_soft_limit_of_open_files_is_raised(run: RUNS) -> None:
    """A low soft limit, as shells and systemd set it, does not limit the connections."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with run() as process:
            await asyncio.to_thread(process.wait_until_ready)
            allowed, _ = resource.prlimit(process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert allowed == min(hard, CONNECTIONS_MAX + RESERVED_FILES)


async def test_serves_before_the_database_is_there(run: RUNS) -> None:
    """Without database and Redis it starts, is alive, not ready, and answers 500."""
    nowhere = {"DATABASE_URL": "postgresql://127.0.0.1:1/x", "REDIS_URL": "redis://127.0.0.1:1"}
    with run(**nowhere) as process:
        async with asyncio.timeout(PATIENCE_S):
            while (await get(process.port, "/healthz")).status != 200:
                await asyncio.sleep(0.02)
        assert (await get(process.port, "/readyz")).status == 503
        assert (await process.callback()).status == 500


async def test_becomes_ready_when_the_schema_appears(run: RUNS, gateways: Gateways) -> None:
    """A gateway that was started before the migration serves when that is done."""
    await gateways.execute("ALTER TABLE generation RENAME TO not_yet")
    with run() as process:
        async with asyncio.timeout(PATIENCE_S):
            while (await get(process.port, "/readyz")).status != 503:
                await asyncio.sleep(0.02)
            assert (await process.callback()).status == 500
            await gateways.execute("ALTER TABLE not_yet RENAME TO generation")
            while (await get(process.port, "/readyz")).status != 200:
                await asyncio.sleep(0.02)
        assert (await process.callback()).json == WRITTEN


async def test_workers_share_port_and_metrics(run: RUNS) -> None:
    """Two workers share the port, their metrics add up, and both end with their parent."""
    with run(WORKERS="2") as process:
        await asyncio.to_thread(process.wait_until_ready)
        answers = await asyncio.gather(*(process.callback(user_id=f"u{n}") for n in range(40)))
        assert all(answer.json == WRITTEN for answer in answers)
        series = 'flokit_callbacks_written_total{vendor="adjust",workspace="ws_test"}'
        for _ in range(4):
            assert (await process.metrics())[series] == 40
        process.signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait) == 0
        assert await get(process.port, "/healthz") == UNANSWERED


async def test_worker_with_a_wrong_file_harms_no_other(run: RUNS) -> None:
    """A worker that cannot read its workspaces logs one line, and the others go on."""
    with run(WORKERS="2") as process:
        workers = await until_all_serve(process)
        (process.folder / "workspaces.toml").write_text("[[")
        os.kill(workers.pop(), signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while "worker not started" not in process.log.read_text():
                await asyncio.sleep(0.02)
        assert (await process.callback()).status == 200
    assert all(json.loads(line) for line in process.log.read_text().splitlines())


NO_ROOM_FOR_WORKERS = """
import functools, os, signal, socket, time
from multiprocessing.context import SpawnProcess
from app.http import workers

workers.REPLACE_AFTER_S = workers.POLL_S = 0
start, failures = SpawnProcess.start, iter(range(2_000))

def start_at_last(process):
    if next(failures, None) is not None:
        raise OSError("out of memory")
    start(process)
    os.kill(os.getpid(), signal.SIGTERM)

SpawnProcess.start = start_at_last
if __name__ == "__main__":
    workers.run(functools.partial(time.sleep, 60), 1, socket.create_server(("127.0.0.1", 0)))
"""


def test_workers_are_started_again(tmp_path: Path) -> None:
    """A worker that finds no room for its process is started again, until there is room."""
    script = tmp_path / "script.py"
    script.write_text(NO_ROOM_FOR_WORKERS)
    command = [sys.executable, str(script)]
    ended = subprocess.run(
        command,
        env=inherited() | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert ended.returncode == 0, ended.stderr[-2_000:]


async def test_workers_end_with_their_parent(run: RUNS) -> None:
    """No worker lives on when the parent is killed."""
    with run(WORKERS="2") as process:
        await until_all_serve(process)
        process.signal(signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):
            while await get(process.port, "/healthz") != UNANSWERED:
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_early_signal_ends_the_process(run: RUNS, workers: str) -> None:
    """A signal that comes early ends the process, and no other one of its group."""
    for delay_s in (0.0, 0.4, 0.8):  # at different moments of its start
        with run(WORKERS=workers) as process:
            await asyncio.sleep(delay_s)
            process.signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait) in (0, -signal.SIGTERM)
            assert await get(process.port, "/healthz") == UNANSWERED


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_repeated_signals_end_the_process_once(run: RUNS, workers: str) -> None:
    """Any number of signals has the effect of one."""
    with run(WORKERS=workers) as process:
        await until_all_serve(process, int(workers))
        ended = asyncio.create_task(asyncio.to_thread(process.wait))
        while not ended.done():
            process.signal(signal.SIGTERM)
            process.signal(signal.SIGINT)
            await asyncio.sleep(0)  # as fast as this machine can
        assert ended.result() == 0, process.log.read_text()


WORST_MOMENTS = """
import argparse, os, signal, sys

change = signal.signal

def change_and_tell(number, handler):
    changed = change(number, handler)
    if number == signal.SIGTERM:
        os.kill(os.getpid(), number)
    return changed

signal.signal = change_and_tell
from app.commands.serve import run
sys.exit(run(argparse.Namespace()))
"""


async def test_signal_during_signal_handling_is_handled(run: RUNS) -> None:
    """A signal that comes while signals are being handled is handled too, and harms nothing."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", WORST_MOMENTS),
        cwd=ROOT,
        env=inherited() | run().environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            log, _ = await process.communicate()
    finally:
        with suppress(ProcessLookupError):
            process.kill()
    assert (process.returncode, b'"serving"' in log) == (0, True), log


async def until_all_serve(process: Process, workers: int = 2) -> set[int]:
    """Return the workers, when every one of them has begun to serve."""
    async with asyncio.timeout(PATIENCE_S):
        while process.log.read_text().count('"serving"') < workers:
            await asyncio.sleep(0.02)
    return workers_of(process.pid)


def workers_of(pid: int) -> set[int]:
    """The processes that a gateway has started to serve."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = (process / "stat").read_text().rpartition(")")[2].split()[1]
            if int(parent) == pid and b"spawn_main" in (process / "cmdline").read_bytes():
                found.add(int(process.name))
    return found


async def test_secret_is_never_printed(run: RUNS, gateways: Gateways) -> None:
    """No log line, metric, answer or row holds the secret, at any failure."""
    with run(LOG_LEVEL="debug") as process:
        await asyncio.to_thread(process.wait_until_ready)
        await process.callback()
        await process.callback(s3=SECRET, app_token="nobody")
        target = f"/ingest/adjust/\xff[?{query()}".encode("latin-1")
        answers = [await get(process.port, target)]
        answers.append(await get(process.port, f"http:///[?{query()}"))
        answers.append(await get(process.port, f"/nowhere?{query()}"))
        _, writer = await asyncio.open_connection("127.0.0.1", process.port)
        writer.write(head("GET", f"/ingest/adjust?{query(user_id='gone')}"))
        writer.transport.abort()
        await gateways.execute("ALTER TABLE events RENAME TO elsewhere")
        answers.append(await process.callback(user_id="fails"))
        metrics = (await get(process.port, "/metrics")).body
        answers.append(await get(process.port, "/readyz"))
    log = process.log.read_text()
    assert "batch failed" in log
    for text in (log, metrics.decode(), *(answer.body.decode() for answer in answers)):
        assert SECRET not in text
    lines = [json.loads(line) for line in log.splitlines()]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)


async def test_failed_batch_is_one_log_line(run: RUNS, gateways: Gateways) -> None:
    """A batch that fails is one line, for any number of callbacks in it; a success is none."""
    with run() as process:
        await asyncio.to_thread(process.wait_until_ready)
        await asyncio.gather(*(process.callback(user_id=f"good{n}") for n in range(10)))
        quiet = process.log.read_text()
        await gateways.execute("ALTER TABLE events RENAME TO elsewhere")
        before = (await process.metrics())["flokit_batch_events_count"]
        await asyncio.gather(*(process.callback(user_id=f"bad{n}") for n in range(30)))
        batches = (await process.metrics())["flokit_batch_events_count"] - before
    added = process.log.read_text().removeprefix(quiet).splitlines()
    failed = [line for line in added if "batch failed" in line]
    assert "good" not in quiet
    assert len(failed) == batches < 30
