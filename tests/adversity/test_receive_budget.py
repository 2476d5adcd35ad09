"""Requests that never end, by the thousand: their share of the memory is bounded."""

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest

from app import bodies
from app.http import connection_limits as connections
from app.http.protocol import GatewayProtocol
from app.parameters import FORM
from app.telemetry.metrics import UNANSWERED
from bench.testbed.client import Answer, head, post, read_answer
from tests.gateways import Gateways, Running, query

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
BUDGET_BYTES, ADD_UP_BYTES = 2_000_000, 250_000
PIECE_BYTES = 60_000
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget that a test can fill."""
    monkeypatch.setattr(connections, "RECEIVED_MAX_BYTES", BUDGET_BYTES)
    monkeypatch.setattr(connections, "ADD_UP_BYTES", ADD_UP_BYTES)


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Running, bytes], Any]]:
    """Open connections that have sent something, and are closed when the test ends."""
    streams: list[Stream] = []

    async def open_with(gateway: Running, sent: bytes) -> Stream:
        stream = await asyncio.open_connection("127.0.0.1", gateway.port)
        stream[1].write(sent)
        streams.append(stream)
        return stream

    yield open_with
    for _, writer in streams:
        writer.transport.abort()


Connect = Callable[[Running, bytes], Any]


def held(gateway: Running) -> int:
    """The bytes in all receive buffers of the gateway, and of the bodies that are still to end."""
    return sum(connection.received_bytes for connection in gateway.server.connections)


def closed() -> float:
    """The number of connections that were closed for want of room."""
    return float(UNANSWERED.labels("no_room")._value.get())


async def is_closed(stream: Stream) -> bool:
    """Whether a connection has no more bytes to read."""
    with suppress(ConnectionError):
        return await stream[0].read() == b""
    return True


BODY = head("POST", f"/ingest/adjust?{query()}", headers={"Content-Length": "1000000"})
CHUNKS = head("POST", f"/ingest/adjust?{query()}", headers={"Transfer-Encoding": "chunked"})
UNFINISHED = {
    "heads": b"GET /ingest/adjust?" + b"A" * PIECE_BYTES,
    "bodies": BODY + b"A" * PIECE_BYTES,
    "chunks": CHUNKS + b"%x\r\n" % (2 * PIECE_BYTES) + b"A" * PIECE_BYTES,
}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED)
@pytest.mark.usefixtures("small_budget")
async def test_unfinished_requests_are_bounded(
    gateways: Gateways, connect: Connect, sent: bytes
) -> None:
    """Any number takes no more than the budget; callbacks and small requests stay."""
    gateway = await gateways.start()
    before = closed()
    small = await connect(gateway, b"GET /ingest/adjust?user_id=small")
    async with gateways.held_writes():
        under_way = await connect(gateway, head("GET", f"/ingest/adjust?{query(user_id='way')}"))
        while not len(gateway.gateway.buffer):
            await asyncio.sleep(0)
        large, most = [], 0
        for _ in range(100):
            large.append(await connect(gateway, sent))
            await asyncio.sleep(0)
            most = max(most, held(gateway))
        async with asyncio.timeout(20):
            while closed() - before < 100 - BUDGET_BYTES // PIECE_BYTES:
                await asyncio.sleep(0.01)
                most = max(most, held(gateway))
        assert most <= BUDGET_BYTES * 1.15  # a buffer that grows takes an eighth more
        assert held(gateway) > BUDGET_BYTES / 2  # and it is there to be used
    assert (await read_answer(under_way[0])).json == WRITTEN
    small[1].write(f"&{query(user_id='rest')} HTTP/1.1\r\n\r\n".encode())
    assert (await read_answer(small[0])).status == 200
    number = int(closed() - before)
    ends = [asyncio.create_task(is_closed(stream)) for stream in large]
    async with asyncio.timeout(20):
        while sum(end.done() and end.result() for end in ends) < number:
            await asyncio.sleep(0.01)
    for end in ends:
        end.cancel()


@pytest.mark.usefixtures("small_budget")
async def test_pipelined_rest_is_bounded(gateways: Gateways, connect: Connect) -> None:
    """Requests of callers that read no answer are part of the budget too."""
    gateway = await gateways.start()
    before = closed()
    many = head("GET", "/metrics") * 3_000
    for _ in range(60):
        await connect(gateway, many)
    async with asyncio.timeout(20):
        while closed() == before:
            await asyncio.sleep(0.01)
    assert held(gateway) <= BUDGET_BYTES * 1.15
    assert (await gateway.callback()).json == WRITTEN


@pytest.mark.usefixtures("small_budget")
async def test_handled_requests_cost_no_budget(gateways: Gateways, connect: Connect) -> None:
    """Any number of bytes may come in, one request after the other: only buffered ones count."""
    gateway = await gateways.start()
    before = closed()
    stream = await connect(gateway, b"")
    unfinished = await connect(gateway, UNFINISHED["heads"][:-1])
    request = head("GET", f"/ingest/adjust?{query(x='A' * 60_000)}")
    for _ in range(3 * BUDGET_BYTES // len(request)):
        stream[1].write(request)
        assert (await read_answer(stream[0])).status == 200
    assert closed() == before
    unfinished[1].write(b" HTTP/1.1\r\n\r\n")
    assert (await read_answer(unfinished[0])).status == 401


async def test_large_bodies_that_wait_for_their_turn_are_bounded(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body without a place behind the others is answered 503, and the vendor sends it again."""
    monkeypatch.setattr(bodies, "WAITING_MAX_BYTES", 100_000)
    gateway = await gateways.start()
    turn = threading.Event()
    gateway.gateway.ingest.bodies.apart.thread.submit(turn.wait)

    async def send(user: str) -> Answer:
        target = f"/ingest/adjust?{query(user_id=user)}"
        return await post(gateway.port, target, b"x=" + b"1" * 60_000, FORM)

    first = asyncio.create_task(send("first"))
    try:
        async with asyncio.timeout(30):
            while not gateway.gateway.ingest.bodies.apart.waiting:
                await asyncio.sleep(0.01)
            answer = await send("second")
    finally:
        turn.set()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
    assert (await first).status == 200
    assert (await send("second")).status == 200
    assert gateway.gateway.ingest.bodies.apart.waiting == 0


@pytest.mark.parametrize(
    "target",
    [f"/ingest/adjust?x={PIECE_BYTES * 'x'}", f"/ingest/{PIECE_BYTES * 'x'}?x=x"],
    ids=["query", "vendor"],
)
async def test_idle_connection_keeps_nothing_of_its_requests(
    gateways: Gateways, connect: Connect, target: str
) -> None:
    """A connection that waits for another request takes no memory for the last one."""
    gateway = await gateways.start()
    number, before = 40, 0
    tracemalloc.start()
    try:
        for _ in range(2):  # caches fill in the first round
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(number):
                stream = await connect(gateway, head("GET", target))
                assert (await read_answer(stream[0])).status in (401, 404)
        kept_bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert kept_bytes < number * PIECE_BYTES / 2


async def test_closed_connection_is_freed_without_a_collection(gateways: Gateways) -> None:
    """No reference leads back to a closed connection, so that its buffer goes with it."""
    gateway = await gateways.start()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
            writer.write(b"GET /ingest/adjust?" + b"a" * 60_000)
            await writer.drain()
            await gateway.callback()
            writer.transport.abort()
        async with asyncio.timeout(20):
            while sum(isinstance(o, GatewayProtocol) for o in gc.get_objects()) > 1:
                await asyncio.sleep(0.01)
    finally:
        gc.enable()
