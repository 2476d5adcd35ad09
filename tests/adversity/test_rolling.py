"""Restarts and crashes under load: nothing is lost, nothing is doubled."""

import asyncio
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import asyncpg
import msgspec
import pytest

from bench.faults.oracle import judge
from bench.testbed import vendor as vendors
from bench.testbed.callbacks import APPS, EVENTS, SECRET, WORKSPACES
from bench.testbed.client import UNANSWERED, Answer, exchange, head
from bench.testbed.deliveries import SHARES, EventGenerator, EventKind
from bench.testbed.haproxy import HAProxy, haproxy
from bench.testbed.ledger import AnswerKind
from bench.testbed.process import PATIENCE_S
from bench.testbed.vendor import Vendor
from tests.gateways import PATIENT, Process, Services
from tests.services.test_serve import until_all_serve, workers_of

FINAL = {
    AnswerKind.WRITTEN, AnswerKind.DUPLICATE, AnswerKind.DROPPED, AnswerKind.MALFORMED,
}  # fmt: skip
RESTARTS = 20
CRASHES = 4
CALLBACKS_PER_S = 150.0
# No caller of these hangs up: each answer is seen.
GENERATOR = EventGenerator(7, SHARES | {EventKind.HUNG_UP: 0, EventKind.POISON: 0})
SERVERS = ("one", "two")
WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
CREDENTIALS = f"secret={SECRET}&app_token={next(iter(APPS))}"
EVENT = f"event_token={next(iter(EVENTS))}&created_at=1750500000"
SERIES = "flokit_callbacks_written_total{"
RUN = Callable[..., Process]


@pytest.fixture
def run(services: Services, database_url: str, tmp_path: Path) -> RUN:
    """Make a process of that name on the test's database; `with` starts and stops it."""

    def make(name: str, **settings: str) -> Process:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "workspaces.toml").write_text(WORKSPACES)
        settings = PATIENT | {"ADJUST_CALLBACK_SECRET": SECRET} | settings
        return Process(database_url, services.redis_url, folder, **settings)

    return make


@asynccontextmanager
async def calling(*ports: int) -> AsyncIterator[Vendor]:
    """A vendor that calls meanwhile; at the end every one of its callbacks is done with.

    It is patient: neither the late answer of a busy machine is a failure, nor a start that outlasts
    the retries.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vendors, "ANSWER_TIMEOUT_S", PATIENCE_S)
        vendor = Vendor(GENERATOR, ports, CALLBACKS_PER_S)
        sending = asyncio.create_task(vendor.send(sys.maxsize))
        try:
            yield vendor
            sending.cancel()
            await vendor.finish()
            assert await vendor.retry_given_up() == []
        finally:
            sending.cancel()
            await vendor.close()


def assert_all_final(vendor: Vendor) -> None:
    """No callback was answered otherwise than finally: none had to be sent again."""
    kinds = vendor.ledger.tally().keys()
    assert {AnswerKind.WRITTEN, AnswerKind.DUPLICATE} <= kinds
    assert kinds <= FINAL


async def assert_exactly_once(
    vendor: Vendor, connection: asyncpg.Connection, *, is_repeated: bool = False
) -> None:
    """The table holds the events that were answered as written.

    A proxy that repeats requests (`is_repeated`) may bring a drop into quarantine twice.
    """
    verdict = await judge(
        connection, GENERATOR, vendor.ledger, vendor.begun, is_repeated=is_repeated
    )
    assert verdict.is_clean, verdict
    assert verdict.rows > 100


async def until_it_has_written(process: Process) -> None:
    """Return when the process itself has written events."""
    async with asyncio.timeout(PATIENCE_S):
        while not any(SERIES in series for series in await process.metrics()):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def behind_haproxy(
    processes: dict[str, Process], folder: Path, haproxy_program: Path
) -> AsyncIterator[tuple[HAProxy, ExitStack]]:
    """Processes behind a HAProxy that has them as servers, and a stack to start them again."""
    ports = {name: process.port for name, process in processes.items()}
    with ExitStack() as stack:
        for process in processes.values():
            stack.enter_context(process)
        proxy = stack.enter_context(haproxy(folder, ports, haproxy_program))
        for name in processes:
            await asyncio.to_thread(proxy.wait_until, name, "UP")
        yield proxy, stack


async def test_rolling_restarts_lose_and_double_nothing(
    run: RUN, connection: asyncpg.Connection, tmp_path: Path, haproxy_program: Path
) -> None:
    """Twenty restarts in turn under load: not one answer fails, nothing is lost or doubled."""
    processes = {name: run(name, DRAIN_PAUSE_S="0.5") for name in SERVERS}
    async with (
        behind_haproxy(processes, tmp_path, haproxy_program) as (proxy, stack),
        calling(proxy.port) as vendor,
    ):
        for turn in range(RESTARTS):
            name = SERVERS[turn % 2]
            process = processes[name]
            await until_it_has_written(process)
            process.signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait) == 0
            await asyncio.to_thread(proxy.wait_until, name, "DOWN")
            stack.enter_context(process)
            await asyncio.to_thread(proxy.wait_until, name, "UP")
    assert_all_final(vendor)
    assert vendor.connections < len(vendor.ledger) / 10  # they are kept alive
    await assert_exactly_once(vendor, connection, is_repeated=True)
    for process in processes.values():
        assert '"ERROR"' not in process.log.read_text().upper()


async def test_crashes_behind_a_proxy_lose_and_double_nothing(
    run: RUN, connection: asyncpg.Connection, tmp_path: Path, haproxy_program: Path
) -> None:
    """When a process is killed, the retries of proxy and vendor lose and double nothing."""
    processes = {name: run(name) for name in SERVERS}
    async with (
        behind_haproxy(processes, tmp_path, haproxy_program) as (proxy, stack),
        calling(proxy.port) as vendor,
    ):
        for turn in range(CRASHES):
            name = SERVERS[turn % 2]
            process = processes[name]
            await until_it_has_written(process)
            process.signal(signal.SIGKILL)
            assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
            await asyncio.to_thread(proxy.wait_until, name, "DOWN")
            stack.enter_context(process)
            await asyncio.to_thread(proxy.wait_until, name, "UP")
    await assert_exactly_once(vendor, connection, is_repeated=True)


async def test_restarts_without_a_proxy_lose_and_double_nothing(
    run: RUN, connection: asyncpg.Connection
) -> None:
    """A caller that is cut off by a restart tries again: nothing is lost or doubled."""
    with ExitStack() as stack:
        process = stack.enter_context(run("alone"))
        await asyncio.to_thread(process.wait_until_ready)
        async with calling(process.port) as vendor:
            for _ in range(CRASHES):
                await until_it_has_written(process)
                process.signal(signal.SIGTERM)
                assert await asyncio.to_thread(process.wait) == 0
                stack.enter_context(process)
                await asyncio.to_thread(process.wait_until_ready)
    # One that ends in good order gives each its receipt, or hangs up before it has taken it.
    failed = {kind for kind in vendor.ledger.tally() if not kind.is_final}
    assert failed <= {AnswerKind.NO_CONNECTION, AnswerKind.CLOSED}
    await assert_exactly_once(vendor, connection)


def get(user: str) -> bytes:
    """A callback of this user, as a GET."""
    return head("GET", f"/ingest/adjust?{CREDENTIALS}&user_id={user}&{EVENT}")


def post(user: str) -> bytes:
    """A callback of this user, as a POST."""
    body = f"user_id={user}&{EVENT}".encode()
    headers = {"Content-Length": str(len(body))}
    return head("POST", f"/ingest/adjust?{CREDENTIALS}", headers=headers) + body


async def test_proxy_gives_no_final_answer_of_its_own(
    run: RUN, tmp_path: Path, haproxy_program: Path
) -> None:
    """The proxy passes all that the gateway accepts, and gives no final answer to the rest."""
    async with behind_haproxy({"one": run("one")}, tmp_path, haproxy_program) as (proxy, _):
        taken = [
            get("ü"),
            get("a|<>^`"),
            get("with#hash"),
            get("long" + "x" * 60_000),
            post("large" + "x" * 1_000_000),
            b"\r\n" + get("late"),
        ]
        for request in taken:
            answer = await through(proxy.port, request)
            assert (answer.status, answer.body) == (200, msgspec.json.encode(WRITTEN)), request[
                :300
            ]
        for request in (get("longer" + "x" * 120_000), b"\0\r\n\r\n", get("a b")):
            assert await through(proxy.port, request) == UNANSWERED


async def through(port: int, request: bytes) -> Answer:
    """The answer through HAProxy, but for its own 503 while a health check is late."""
    async with asyncio.timeout(PATIENCE_S):
        while (answer := await exchange(port, request)).body.startswith(b"<html>"):
            await asyncio.sleep(0.02)
    return answer


VERIFIED = f"/ingest/adjust?{CREDENTIALS}&user_id=by_itself&{EVENT}"
# HAProxy's answers to these, without an `errorfile`.
BY_ITSELF = {
    "413": f"GET {VERIFIED} HTTP/1.0\r\nContent-Length: 3\r\n\r\nx=1".encode(),
    "422": head("POST", VERIFIED, headers={"Transfer-Encoding": "gzip, chunked"}) + b"0\r\n\r\n",
    # It fits into HAProxy's buffer, and the gateway closes the connection.
    "502": get("x" * 66_000),
}


@pytest.mark.parametrize("status", BY_ITSELF)
async def test_proxy_closes_requests_that_it_refuses(
    run: RUN, tmp_path: Path, haproxy_program: Path, status: str
) -> None:
    """A request that HAProxy would answer by itself is closed unanswered, with a log line."""
    async with behind_haproxy({"one": run("one")}, tmp_path, haproxy_program) as (proxy, _):
        assert await through(proxy.port, BY_ITSELF[status]) == UNANSWERED
        async with asyncio.timeout(PATIENCE_S):
            while f" {status} " not in (tmp_path / "haproxy.log").read_text():
                await asyncio.sleep(0.02)


async def test_proxy_passes_only_public_paths(
    run: RUN, tmp_path: Path, haproxy_program: Path
) -> None:
    """It passes callbacks and `/healthz`, by GET or HEAD, with more slashes too; no more."""
    async with behind_haproxy({"one": run("one")}, tmp_path, haproxy_program) as (proxy, _):
        for path in ("/healthz", "//healthz", "http://gateway/healthz"):
            assert (await through(proxy.port, head("GET", path))).status == 200
        assert (await through(proxy.port, get("slashes").replace(b"/", b"//", 1))).status == 200
        for path in ("/metrics", "/readyz", "/", "/healthz/x", "/x/ingest/adjust"):
            assert (await exchange(proxy.port, head("GET", path))).status == 503
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(head("HEAD", "/healthz", headers={"Connection": "close"}))
        assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
        writer.close()


async def test_killed_worker_is_replaced(run: RUN, connection: asyncpg.Connection) -> None:
    """A killed worker is back within 5 s, and the vendor's retries lose and double nothing."""
    with run("several", WORKERS="2") as process:
        limit_s = await limit_of_a_start(process)
        async with calling(process.port) as vendor:
            await until_it_has_written(process)
            for turn in range(CRASHES):
                served = serving(process)
                killed = sorted(workers_of(process.pid))[turn % 2]
                started = time.monotonic()
                os.kill(killed, signal.SIGKILL)
                while not serving(process) - served:
                    assert time.monotonic() - started < limit_s
                    await asyncio.sleep(0.02)
        assert process.log.read_text().count("a worker ended and is replaced") == CRASHES
    await assert_exactly_once(vendor, connection)


async def test_gateway_starts_again_after_a_killed_parent(
    run: RUN, connection: asyncpg.Connection
) -> None:
    """When the parent of the workers is killed, all can be started again within 5 s."""
    with ExitStack() as stack:
        # The workers do not wait for callbacks to go elsewhere: there may be no other gateway.
        process = stack.enter_context(run("several", WORKERS="2", DRAIN_PAUSE_S="300"))
        limit_s = await limit_of_a_start(process)
        workers = workers_of(process.pid)
        async with calling(process.port) as vendor:
            await until_it_has_written(process)
            await kill_with_workers(process, workers, limit_s)
            stack.enter_context(process)
            workers = await until_all_serve(process, 4)
            await until_it_has_written(process)
        await kill_with_workers(process, workers, limit_s)
    await assert_exactly_once(vendor, connection)


async def limit_of_a_start(process: Process) -> float:
    """Wait for both workers; return 5 s, or three times as long as that took on a busy machine."""
    started = time.monotonic()
    await until_all_serve(process)
    return max(5.0, 3 * (time.monotonic() - started))


async def kill_with_workers(process: Process, workers: set[int], limit_s: float) -> None:
    """Kill the parent; soon the workers are gone, and another may listen on the port."""
    process.signal(signal.SIGKILL)
    async with asyncio.timeout(limit_s):
        await asyncio.to_thread(process.wait)
        while not is_free(process.port) or live(workers):
            await asyncio.sleep(0.02)


def serving(process: Process) -> set[int]:
    """The workers of a gateway that have ever begun to serve."""
    lines = (json.loads(line) for line in process.log.read_text().splitlines())
    return {line["pid"] for line in lines if line["message"] == "serving"}


def live(pids: set[int]) -> bool:
    """Whether any of these processes is still there."""
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


def is_free(port: int) -> bool:
    """Whether a server may listen on this port."""
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False
