"""Callers that mean harm: other callers are still served, and no request gets two answers."""

import asyncio
import itertools
import os
import resource
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.http import connection_limits, protocol
from bench.testbed.client import UNANSWERED, exchange, get, head, read_answer
from tests.gateways import Gateways, Process, Services, Target, query

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
VERIFIED = f"/ingest/adjust?{query()}"
UNVERIFIED = f"/ingest/adjust?{query(secret='wrong')}"
CHUNKED = {"Transfer-Encoding": "chunked"}
LARGE = {"Content-Length": "1000000"}
SOON_S, PATIENCE_S = 4.0, 30.0  # soon is before any time-out of a hostile request
users = itertools.count(1)


async def unanswered(gateway: Target) -> dict[str, float]:
    """The connections that were closed without an answer, by reason."""
    return {
        series.partition('"')[2].removesuffix('"}'): number
        for series, number in (await gateway.metrics()).items()
        if number and series.startswith("flokit_connections_unanswered_total")
    }


async def counted(gateway: Target, reason: str, before: dict[str, float]) -> float:
    """The increase for one reason, with no increase for any other."""
    now = await unanswered(gateway)
    assert {name for name, number in now.items() if number != before.get(name, 0)} <= {reason}
    return now.get(reason, 0) - before.get(reason, 0)


async def assert_others_are_served(gateway: Target, callbacks: int = 10) -> None:
    """Callbacks of another caller, each on a new connection, are written soon on average."""
    started = time.monotonic()
    for _ in range(callbacks):
        assert (await gateway.callback(user_id=f"other{next(users)}")).json == WRITTEN
    assert time.monotonic() - started < callbacks * SOON_S


class Crowd:
    """Many connections that all do the same, until the end of the test."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def add(self, number: int, first: bytes = b"", drip: bytes = b"") -> None:
        """Open connections, send `first` on each, and then `drip` again and again."""
        for _ in range(number):
            stream = await asyncio.open_connection("127.0.0.1", self.port)
            stream[1].write(first)
            self.streams.append(stream)
            if drip:
                self._tasks.append(asyncio.create_task(self._drip(stream[1], drip)))

    async def _drip(self, writer: asyncio.StreamWriter, drip: bytes) -> None:
        while not writer.is_closing():
            writer.write(drip)
            await asyncio.sleep(0.1)

    async def until_nothing_moves(self) -> None:
        """Return when no byte of the rest is taken any more."""
        left = [-1, 0]
        while left[-1] != left[-2]:
            left.append(sum(w.transport.get_write_buffer_size() for _, w in self.streams))
            await asyncio.sleep(0.3)

    async def ends(self) -> list[bytes]:
        """The bytes that each connection has received by its end."""
        async with asyncio.timeout(PATIENCE_S):
            return await asyncio.gather(*(self._end(reader) for reader, _ in self.streams))

    async def _end(self, reader: asyncio.StreamReader) -> bytes:
        received = b""
        with suppress(ConnectionError):  # closed with something of ours unread
            while more := await reader.read(2**16):
                received += more
        return received

    def leave(self) -> None:
        """Close every connection."""
        for task in self._tasks:
            task.cancel()
        for _, writer in self.streams:
            writer.transport.abort()
        self.streams.clear()


@pytest.fixture
async def crowd_of() -> AsyncIterator[Callable[[int], Crowd]]:
    """Make crowds, by port, that leave when the test ends."""
    crowds: list[Crowd] = []

    def make(port: int) -> Crowd:
        crowds.append(Crowd(port))
        return crowds[-1]

    yield make
    for crowd in crowds:
        crowd.leave()


Crowds = Callable[[int], Crowd]


@pytest.fixture
def many_files() -> Iterator[None]:
    """Let this process, and those that it starts, open as many files as the machine allows."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[1], limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.fixture
async def process(
    many_files: None, services: Services, database_url: str, tmp_path: Path
) -> AsyncIterator[Process]:
    """A gateway as a process, which the test may harm."""
    assert many_files is None
    with Process(database_url, services.redis_url, tmp_path) as process:
        await asyncio.to_thread(process.wait_until_ready)
        yield process


def memory_bytes(process: Process) -> int:
    """The memory of the process."""
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def test_idle_connections_delay_no_other(process: Process, crowd_of: Crowds) -> None:
    """Thousands that send nothing, stop in a head, or are kept alive delay no other caller."""
    crowd = crowd_of(process.port)
    await crowd.add(1500)
    await crowd.add(1500, head("GET", "/healthz"))
    await crowd.add(500, b"GET /ingest/adjust?secret=", b"A")
    await assert_others_are_served(process)
    assert await unanswered(process) == {}


async def test_slow_bodies_delay_no_other(process: Process, crowd_of: Crowds) -> None:
    """Hundreds of bodies that drip, of verified callers and others, delay no other caller."""
    crowd = crowd_of(process.port)
    for target in (VERIFIED, UNVERIFIED, "/healthz", "/nowhere"):
        await crowd.add(30, head("POST", target, headers=LARGE), b"x")
        await crowd.add(30, head("POST", target, headers=CHUNKED), b"1;e=e\r\nx\r\n" * 20)
    await assert_others_are_served(process)


async def test_pipelined_requests_take_turns(process: Process, crowd_of: Crowds) -> None:
    """A caller that pipelines requests without a pause waits after each one, as all do."""
    crowd = crowd_of(process.port)
    await crowd.add(3)
    many = b"GET / HTTP/1.1\r\n\r\n" * 10_000

    async def send(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(many)
            await writer.drain()

    sending = [asyncio.create_task(send(writer)) for _, writer in crowd.streams]
    reading = asyncio.create_task(crowd.ends())
    await assert_others_are_served(process)
    for task in (*sending, reading):
        task.cancel()


async def test_unread_answers_stop_the_reading(process: Process, crowd_of: Crowds) -> None:
    """Requests of a caller that reads no answer are not read either: memory stays bounded."""
    await assert_others_are_served(process)
    before = memory_bytes(process)
    crowd = crowd_of(process.port)
    await crowd.add(20, b"GET / HTTP/1.1\r\n\r\n" * 200_000)
    await crowd.add(20, head("GET", VERIFIED) * 20_000)
    await crowd.until_nothing_moves()
    await assert_others_are_served(process)
    assert memory_bytes(process) - before < 40 * 1024 * 1024


async def test_caller_that_never_reads_is_closed(
    gateways: Gateways, crowd_of: Crowds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller that never reads is closed in the end, and counted."""
    monkeypatch.setattr(connection_limits, "UNREAD_TIMEOUT_S", 0.2)
    gateway = await gateways.start()
    before = await unanswered(gateway)
    crowd = crowd_of(gateway.port)
    await crowd.add(1, head("GET", "/metrics") * 5_000)
    async with asyncio.timeout(PATIENCE_S):
        while await counted(gateway, "answers_not_read", before) < 1:
            await asyncio.sleep(0.05)
        while len(gateway.server.connections) > 1:
            await asyncio.sleep(0.05)


async def test_head_without_end_is_closed(
    gateways: Gateways, crowd_of: Crowds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No head, and no number of empty lines ahead of one, is awaited without end."""
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    gateway = await gateways.start()
    crowd = crowd_of(gateway.port)
    before = await unanswered(gateway)
    empty_lines = itertools.product((b"\r\n", b"\r\n\r\n"), (b"", b"A", b"\r\n", b"\r\n\r\n"))
    heads = itertools.product(
        (b"GET /", b"GET / HTTP/1.1\r\n", b"GET /\n\n"), (b"", b"A", b"a: b\n")
    )
    for first, drip in itertools.chain(empty_lines, heads):
        await crowd.add(1, first, drip)
    assert set(await crowd.ends()) == {b""}
    assert await counted(gateway, "head_too_slow", before) == len(crowd.streams)


async def test_rest_of_a_body_without_end_is_closed(
    gateways: Gateways, crowd_of: Crowds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of a request that was answered early is read for a while, and not for ever."""
    monkeypatch.setattr(protocol, "REST_TIMEOUT_S", 0.2)
    gateway = await gateways.start()
    before = await unanswered(gateway)
    crowd = crowd_of(gateway.port)
    answered = {UNVERIFIED: 401, "/ingest/nobody": 404, "/nowhere": 404, "/healthz": 405}
    bodies = ((LARGE, b""), (LARGE, b"x"), (CHUNKED, b""), (CHUNKED, b"1\r\nx\r\n"))
    for target, (headers, drip) in itertools.product(answered, bodies):
        await crowd.add(1, head("POST", target, headers=headers), drip)
    statuses = [int(received.split()[1]) for received in await crowd.ends()]
    assert statuses == [status for status in answered.values() for _ in bodies]
    assert await counted(gateway, "", before) == 0


async def test_rest_of_a_body_has_a_limit(server: Process) -> None:
    """Of the rest of a request that was answered early, no more is read than of any body."""
    target = f"/ingest/adjust?{query(secret='wrong')}"
    request = head("POST", target, headers={"Content-Length": str(protocol.BODY_MAX_BYTES + 1)})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    async with asyncio.timeout(PATIENCE_S):
        assert (await read_answer(reader)).status == 401
        assert await reader.read() == b""
    writer.close()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
async def test_page_does_not_wait_for_a_body(server: Process, path: str) -> None:
    """A page is answered without reading a body: strangers cannot fill the memory with theirs."""
    assert (await get(server.port, path, headers=LARGE)).status == 200
    assert "not consumed" not in server.log.read_text()


async def test_silent_connections_are_closed(
    gateways: Gateways, crowd_of: Crowds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unused connections are closed after a while; that is no error."""
    monkeypatch.setattr("app.http.app.KEEP_ALIVE_TIMEOUT_S", 0.2)
    gateway = await gateways.start()
    before = await unanswered(gateway)
    crowd = crowd_of(gateway.port)
    await crowd.add(2)
    await crowd.add(2, head("GET", "/healthz"))
    received = await crowd.ends()
    assert [len(answers) > 0 for answers in received] == [False, False, True, True]
    assert await counted(gateway, "", before) == 0


@pytest.mark.parametrize("protocol", ["websocket", "h2c", "TLS/1.0"])
async def test_upgrade_is_not_offered(
    gateways: Gateways, crowd_of: Crowds, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    """The callback of an upgrade is served like any other, and its silence ends in time."""
    monkeypatch.setattr("app.http.app.KEEP_ALIVE_TIMEOUT_S", 0.2)
    gateway = await gateways.start()
    crowd = crowd_of(gateway.port)
    headers = {"Upgrade": protocol, "Connection": "keep-alive"}
    async with gateways.held_writes():
        await crowd.add(1, head("GET", VERIFIED, headers=headers))
        await asyncio.sleep(0.5)  # Sanic looks at its connections every 0.1 s
    (received,) = await crowd.ends()
    assert received.startswith(b"HTTP/1.1 200 ")


async def test_new_connections_replace_silent_ones(process: Process, crowd_of: Crowds) -> None:
    """Where no descriptor is left, new connections take the place of silent ones, and count."""
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (200, 200))
    crowd = crowd_of(process.port)
    await crowd.add(300)
    await crowd.add(300, b"GET / ")
    await assert_others_are_served(process)
    assert await counted(process, "no_room", {}) > 400
    assert '"error"' not in process.log.read_text()


async def test_new_connections_are_closed_when_full(process: Process, crowd_of: Crowds) -> None:
    """Where every connection has a callback, new ones are closed, until there is room again."""
    resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (200, 200))
    crowd = crowd_of(process.port)
    await crowd.add(250, head("POST", VERIFIED, headers=LARGE))
    async with asyncio.timeout(PATIENCE_S):
        while await get(process.port, "/healthz") != UNANSWERED:
            await asyncio.sleep(0.01)
        crowd.leave()
        while await get(process.port, "/healthz") == UNANSWERED:
            await asyncio.sleep(0.01)
    await assert_others_are_served(process)
    assert await counted(process, "no_room", {}) >= 100


SECOND = head("GET", "/healthz")
SMUGGLED = {
    "length and chunks": head("POST", VERIFIED, headers={"Content-Length": "5"} | CHUNKED)
    + b"0\r\n\r\n",
    "chunks and length": head("POST", VERIFIED, headers=CHUNKED | {"Content-Length": "5"})
    + b"0\r\n\r\n",
    "two lengths": head("POST", VERIFIED, headers={"Content-Length": "0\r\nContent-Length: 3"}),
    "a list of lengths": head("POST", VERIFIED, headers={"Content-Length": "0, 0"}),
    "a signed length": head("POST", VERIFIED, headers={"Content-Length": "+0"}),
    "a length in foreign digits": head("POST", VERIFIED, headers={"Content-Length": "\u0660"}),
    "a space after the name": head("POST", VERIFIED, headers={"Content-Length ": "47"}),
    "a tab after the name": head("POST", VERIFIED, headers={"Transfer-Encoding\t": "chunked"}),
    "a folded line": head("POST", VERIFIED, headers={"A": "b\r\n Content-Length: 47"}),
    "a folded first line": head("POST", VERIFIED).replace(b"Host", b" Host"),
    "a bare LF": head("POST", VERIFIED, headers={"A": "b\nContent-Length: 47"}),
    "a bare CR": head("POST", VERIFIED, headers={"A": "b\rContent-Length: 47"}),
    "a NUL": head("POST", VERIFIED, headers={"A": "b\0c"}),
    "an odd space ahead": head("POST", VERIFIED, headers={"Transfer-Encoding": "\x0bchunked"})
    + b"0\r\n\r\n",
    "an encoding in between": head("POST", VERIFIED, headers={"Transfer-Encoding": "gzip, chunked"})
    + b"0\r\n\r\n",
    "unknown encoding": head("POST", VERIFIED, headers={"Transfer-Encoding": "xchunked"}),
    "chunks in HTTP/1.0": b"POST %s HTTP/1.0\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: keep-alive\r\n\r\n0\r\n\r\n" % VERIFIED.encode(),
    "a prefix": head("POST", VERIFIED, headers=CHUNKED) + b"0x3\r\nx=1\r\n0\r\n\r\n",
    "a chunk that is longer": head("POST", VERIFIED, headers=CHUNKED) + b"3\r\nx=12\r\n0\r\n\r\n",
    "a bare LF after a chunk": head("POST", VERIFIED, headers=CHUNKED)
    + b"3\r\nx=1\n0\r\n\r\n",
    "a negative chunk": head("POST", VERIFIED, headers=CHUNKED) + b"-1\r\n",
    "a giant chunk": head("POST", VERIFIED, headers=CHUNKED) + b"f" * 60 + b"\r\n",
    "a giant extension": head("POST", VERIFIED, headers=CHUNKED) + b"1;" + b"e" * 70_000,
    "a trailer": head("POST", VERIFIED, headers=CHUNKED) + b"3\r\nx=1\r\n0\r\nA: b\r\n\r\n",
    "an authority": head("CONNECT", "gateway:443"),
}  # fmt: skip


@pytest.mark.parametrize("request_bytes", SMUGGLED.values(), ids=SMUGGLED)
async def test_request_in_a_request_is_unanswered(server: Process, request_bytes: bytes) -> None:
    """Request smuggling fails: an ambiguous request is not answered, and counts once."""
    before = await unanswered(server)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request_bytes + SECOND)
    async with asyncio.timeout(PATIENCE_S):
        with suppress(ConnectionError):
            assert await reader.read() == b""
    writer.close()
    after = await unanswered(server)
    assert sum(after.values()) - sum(before.values()) == 1


async def test_request_before_a_malformed_one_is_answered(server: Process) -> None:
    """A request before something malformed keeps its answer; one after it gets none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    user = f"good{next(users)}"
    good = head("GET", f"/ingest/adjust?{query(user_id=user)}")
    writer.write(good + b"malformed\r\n\r\n" + good)
    async with asyncio.timeout(PATIENCE_S):
        assert (await read_answer(reader)).json == WRITTEN
        assert await reader.read() == b""
    writer.close()


async def test_one_wrong_byte_is_safe(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    """With any one byte of a callback lost or wrong, the answer is a documented one or none."""
    monkeypatch.setattr(protocol, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(protocol, "BODY_TIMEOUT_S", 0.2)
    gateway = await gateways.start()
    request = head("POST", "/ingest/adjust?secret=s3cr3t", headers={"Content-Length": "3"}) + b"x=1"
    wrong = [
        request[:place] + byte + request[place + 1 :]
        for place in range(len(request))
        for byte in (b"", b"\0", b"\r", b"\n", b" ", b":", b"?", b"9", b"\xff")
    ]
    for first in range(0, len(wrong), 100):
        some = (exchange(gateway.port, sent) for sent in wrong[first : first + 100])
        for answer in await asyncio.gather(*some):
            assert answer.status in (0, 200, 400, 401, 404, 405)
            if answer.status == 400:
                assert answer.json == {"error": "Malformed body."}
    assert (await gateway.callback()).json == WRITTEN
