"""The simulated vendor: it tries again when Adjust would, and only then."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from bench.faults.ledger import Told
from bench.faults.stories import Author, Plot
from bench.testbed import vendor
from bench.testbed.proxy import Moment, Proxy
from bench.testbed.vendor import Vendor

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


def message(kind: bytes, body: bytes) -> bytes:
    """A message of PostgreSQL's protocol."""
    return kind + (4 + len(body)).to_bytes(4, "big") + body


ROWS = b"PGCOPY\n\xff\r\n\x00" + b"rows" * 20
COPY = message(b"d", ROWS) + message(b"c", b"")
HALF = message(b"d", ROWS[: len(ROWS) // 2])
BEGIN, COMMIT = message(b"Q", b"BEGIN\x00"), message(b"Q", b"COMMIT\x00")
DONE = message(b"C", b"COPY 20\x00") + message(b"Z", b"I")
COPIED = message(b"C", b"COPY 20\x00") + message(b"Z", b"T")
COMMITTED = message(b"C", b"COMMIT\x00") + message(b"Z", b"I")


class Talk:
    """A client and a server that talk over a proxy, as they are told."""

    def __init__(self) -> None:
        self.arrived = bytearray()  # at the server
        self.answered = bytearray()  # at the client
        self._answers: list[bytes] = []

    @asynccontextmanager
    async def over(self) -> AsyncIterator[Proxy]:
        """Connect; yields the proxy."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        proxy = Proxy(server.sockets[0].getsockname()[1])
        await proxy.open()
        reader, self._writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        listening = asyncio.create_task(self._listen(reader))
        try:
            yield proxy
        finally:
            listening.cancel()
            self._writer.close()
            proxy.close()
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(10_000):
                self.arrived += data
                if self._answers:
                    writer.write(self._answers.pop(0))
        writer.close()

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(10_000):
                self.answered += data

    def say(self, data: bytes, answer: bytes = b"") -> None:
        """Let the client say something, and the server answer it."""
        if answer:
            self._answers.append(answer)
        self._writer.write(data)

    async def until(self, where: bytearray, what: bytes) -> None:
        """Return when this is what has arrived there."""
        async with asyncio.timeout(10):
            while len(where) < len(what):
                await asyncio.sleep(0.001)
        assert where == what


@pytest.mark.parametrize(("moment", "arrives"), [(Moment.BEFORE_COPY, b""), (Moment.IN_COPY, HALF)])
async def test_a_copy_is_caught_at_another_moment(moment: Moment, arrives: bytes) -> None:
    """Before a COPY the server has nothing of it, and within it whole rows: the first half."""
    talk = Talk()
    async with talk.over() as proxy:
        catching = asyncio.create_task(proxy.catch(moment))
        await asyncio.sleep(0)
        talk.say(COPY)
        wire = await catching
        await talk.until(talk.arrived, arrives)
        wire.release()
        rest = COPY if not arrives else message(b"d", ROWS[len(ROWS) // 2 :]) + message(b"c", b"")
        await talk.until(talk.arrived, arrives + rest)


async def test_a_commit_is_caught_at_another_moment() -> None:
    """The rows are there, and their COMMIT is not; or it is, and its answer is not."""
    talk = Talk()
    async with talk.over() as proxy:
        catching = asyncio.create_task(proxy.catch(Moment.BEFORE_COMMIT))
        await asyncio.sleep(0)
        talk.say(BEGIN)
        await talk.until(talk.arrived, BEGIN)
        talk.say(COPY, COPIED)
        await talk.until(talk.answered, COPIED)
        talk.say(COMMIT)
        wire = await catching
        assert talk.arrived == BEGIN + COPY
        catching = asyncio.create_task(proxy.catch(Moment.AFTER_COMMIT))
        await asyncio.sleep(0)
        wire.has_copied = True
        talk._answers.append(COMMITTED)
        wire.release()
        assert await catching is wire
        assert talk.arrived == BEGIN + COPY + COMMIT
        assert talk.answered == COPIED


async def test_a_copy_of_its_own_is_committed_with_its_answer() -> None:
    """A COPY outside of a transaction is committed when the server says how many rows it has."""
    talk = Talk()
    async with talk.over() as proxy:
        catching = asyncio.create_task(proxy.catch(Moment.AFTER_COMMIT))
        await asyncio.sleep(0)
        talk.say(COPY, DONE)
        wire = await catching
        assert talk.arrived == COPY
        assert not talk.answered
        wire.release()
        await talk.until(talk.answered, DONE)


async def test_a_cut_is_an_end() -> None:
    """A wire that is cut is reset: neither end takes it for a good end."""

    async def serve(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        with pytest.raises(ConnectionResetError):
            await reader.read()
        resets.append(1)

    resets: list[int] = []
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy = Proxy(server.sockets[0].getsockname()[1])
    await proxy.open()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    async with asyncio.timeout(10):
        while not proxy.wires or not all(wire.server.is_open for wire in proxy.wires):
            await asyncio.sleep(0.001)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        while not resets:
            await asyncio.sleep(0.001)
    writer.close()
    proxy.close()
    server.close()
