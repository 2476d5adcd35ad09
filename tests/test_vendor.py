"""The simulated vendor: it tries again when Adjust would, and only then."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from bench import vendor
from bench.ledger import Told
from bench.proxy import Moment, Proxy
from bench.stories import Author, Plot
from bench.vendor import Vendor

BODIES = {
    200: b'{"received":1,"written":1,"duplicate":0,"dropped":0}',
    401: b'{"error":"Unverified callback."}',
    500: b'{"error":"Internal Server Error"}',
    503: b'{"error":"Service Unavailable"}',
}
CLOSED, SILENT = 0, -1


class Endpoint:
    """An endpoint that answers as it is told, in turn; its last word is repeated."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[bytes] = []
        self.connections = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[int]:
        """Listen on a port, which is given."""
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        yield listener.sockets[0].getsockname()[1]
        listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            self.requests.append(request)
            status = self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]
            if status == CLOSED:
                break
            if status != SILENT:
                body = BODIES[status]
                head = f"HTTP/1.1 {status} X\r\nRetry-After: 1\r\nContent-Length: {len(body)}"
                writer.write(head.encode() + b"\r\n\r\n" + body)
        writer.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vendor whose hours are milliseconds."""
    monkeypatch.setattr(vendor, "RETRY_AFTER_S", (0.001,) * 6)
    monkeypatch.setattr(vendor, "ANSWER_TIMEOUT_S", 0.1)


async def send(endpoint: Endpoint, plot: Plot, stories: int = 1) -> Vendor:
    """Send stories of one plot to an endpoint, and return the vendor when it is done."""
    async with endpoint.listen() as port:
        sender = Vendor(Author(1, {plot: 1}), [port], rate=1_000)
        await sender.send(stories)
        await sender.finish()
        await sender.close()
    return sender


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("statuses", "told"),
    [
        ([200], [Told.WRITTEN]),
        ([401], [Told.REFUSED]),
        ([500, 503, 200], [Told.ERROR, Told.UNAVAILABLE, Told.WRITTEN]),
        ([CLOSED, 200], [Told.CLOSED, Told.WRITTEN]),
        ([SILENT, 200], [Told.TIMED_OUT, Told.WRITTEN]),
        ([500], [Told.ERROR] * 7),
    ],
)
async def test_tries_again_at_the_wrong_time(statuses: Sequence[int], told: list[Told]) -> None:
    """A retry comes after a 5xx or no answer, at most six times, and never after a 2xx or 4xx."""
    endpoint = Endpoint(*statuses)
    sender = await send(endpoint, Plot.UNMAPPED)
    assert [entry.told for entry in sender.ledger] == told
    assert len(set(endpoint.requests)) == 1
    assert sender.ledger.given_up == ([0] if len(told) == 7 else [])


@pytest.mark.usefixtures("quick")
async def test_nobody_listens() -> None:
    """An endpoint that cannot be reached is tried seven times, and given up."""
    sender = Vendor(Author(1, {Plot.UNMAPPED: 1}), [1], rate=1_000)
    await sender.send(1)
    await sender.finish()
    await sender.close()
    assert sender.ledger.tally() == {Told.NO_CONNECTION: 7}


@pytest.mark.usefixtures("quick")
async def test_a_caller_that_hangs_up_does_not_come_back() -> None:
    """A caller that went away tries again, whatever became of its first request."""
    sender = await send(Endpoint(200), Plot.HUNG_UP, stories=20)
    assert sender.ledger.tally() == {Told.HUNG_UP: 20, Told.WRITTEN: 20}


@pytest.mark.usefixtures("quick")
async def test_connections_are_not_kept() -> None:
    """One callback after another needs one connection."""
    endpoint = Endpoint(200)
    async with endpoint.listen() as port:
        sender = Vendor(Author(1, {Plot.UNMAPPED: 1}), [port], rate=1_000)
        for number in range(1, 20):
            await sender.send(number)
            await sender.finish()
        await sender.close()
    assert (endpoint.connections, len(endpoint.requests)) == (1, 19)


COPY = b"d\x00\x00\x01\x00PGCOPY\n\xff\r\n\x00" + b"rows" * 20


@pytest.mark.parametrize(
    ("moment", "share"), [(Moment.BEFORE_COPY, 0), (Moment.IN_COPY, 0.5), (Moment.AFTER_COPY, 1)]
)
async def test_a_wire_is_caught_at_another_moment(moment: Moment, share: float) -> None:
    """The bench strikes where it says: before, within or after what a COPY sends."""
    arrived = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1_000):
            arrived.extend(data)
            writer.write(b"answer")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    await proxy.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"hello")
    assert await reader.readexactly(6) == b"answer"
    catching = asyncio.create_task(proxy.catch(moment))
    await asyncio.sleep(0)
    writer.write(COPY)
    wire = await catching
    expected = b"hello" + COPY[: int(len(COPY) * share)]
    async with asyncio.timeout(10):
        while len(arrived) < len(expected):
            await asyncio.sleep(0.001)
    assert arrived == expected
    wire.release()
    assert await reader.readexactly(6) == b"answer"
    async with asyncio.timeout(10):
        while len(arrived) < len(b"hello" + COPY):
            await asyncio.sleep(0.001)
    wire.cut()
    assert not proxy.wires
    writer.close()
    proxy.close()
    server.close()
