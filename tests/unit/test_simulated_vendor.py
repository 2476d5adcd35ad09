"""The simulated vendor retries as Adjust does; the proxy holds a connection at a chosen moment."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from bench.testbed import vendor
from bench.testbed.deliveries import EventGenerator, EventKind
from bench.testbed.drops import SENDING, numbered
from bench.testbed.ledger import AnswerKind
from bench.testbed.proxy import Moment, Proxy
from bench.testbed.vendor import Vendor

BODIES = {
    200: b'{"received":1,"written":1,"duplicate":0,"dropped":0}',
    401: b'{"error":"Unverified callback."}',
    500: b'{"error":"Internal Server Error"}',
    503: b'{"error":"Service Unavailable"}',
}
CLOSED, SILENT = 0, -1
QUICKLY_S = (0.001,) * 6
LENGTH = re.compile(rb"Content-Length: (\d+)")


class Endpoint:
    """An endpoint with these answers, in turn; the last one is repeated."""

    def __init__(self, *statuses: int) -> None:
        self.statuses = list(statuses)
        self.requests: list[bytes] = []
        self.connections = 0

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[int]:
        """Listen; yields the port."""
        listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        yield listener.sockets[0].getsockname()[1]
        listener.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            try:
                request = await reader.readuntil(b"\r\n\r\n")
                if length := LENGTH.search(request):
                    request += await reader.readexactly(int(length[1]))
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
    """A vendor that soon gives up waiting for an answer, but not within a stall."""
    monkeypatch.setattr(vendor, "ANSWER_TIMEOUT_S", 1.0)


async def send(endpoint: Endpoint, kind: EventKind, events: int = 1) -> Vendor:
    """Send events of one kind to an endpoint, and return the vendor after the last answer."""
    async with endpoint.listen() as port:
        sender = Vendor(EventGenerator(1, {kind: 1}), [port], rate=1_000, retry_after_s=QUICKLY_S)
        await sender.send(events)
        await sender.finish()
        await sender.close()
    return sender


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    ("statuses", "kinds"),
    [
        ([200], [AnswerKind.WRITTEN]),
        ([401], [AnswerKind.REFUSED]),
        ([500, 503, 200], [AnswerKind.ERROR, AnswerKind.UNAVAILABLE, AnswerKind.WRITTEN]),
        ([CLOSED, 200], [AnswerKind.CLOSED, AnswerKind.WRITTEN]),
        ([SILENT, 200], [AnswerKind.TIMED_OUT, AnswerKind.WRITTEN]),
        ([500], [AnswerKind.ERROR] * 7),
    ],
)
async def test_retries_after_5xx_or_silence_alone(
    statuses: Sequence[int], kinds: list[AnswerKind]
) -> None:
    """A retry comes after a 5xx or no answer, at most six times, and never after a 2xx or 4xx."""
    endpoint = Endpoint(*statuses)
    sender = await send(endpoint, EventKind.PLAIN)
    assert [entry.kind for entry in sender.ledger] == kinds
    assert len(set(endpoint.requests)) == 1
    assert sender.ledger.given_up == ([0] if len(kinds) == 7 else [])


@pytest.mark.usefixtures("quick")
async def test_each_sending_of_a_drop_has_its_number() -> None:
    """The requests of a callback that must be dropped differ in the number of the sending alone."""
    endpoint = Endpoint(500, 503, 200)
    sender = await send(endpoint, EventKind.UNKNOWN_APP)
    assert [sending.kind for sending in sender.ledger.sendings.values()] == [
        AnswerKind.ERROR,
        AnswerKind.UNAVAILABLE,
        AnswerKind.WRITTEN,
    ]
    for number, request in zip(sender.ledger.sendings, endpoint.requests, strict=True):
        assert b"sending-%010d" % number in request
        assert numbered(endpoint.requests[0].replace(b"sending-0000000001", SENDING), number) == (
            request
        )


@pytest.mark.usefixtures("quick")
async def test_unreachable_endpoint_is_given_up() -> None:
    """An endpoint that cannot be reached is tried seven times, and given up."""
    sender = Vendor(
        EventGenerator(1, {EventKind.UNMAPPED: 1}), [1], rate=1_000, retry_after_s=QUICKLY_S
    )
    await sender.send(1)
    await sender.finish()
    await sender.close()
    assert sender.ledger.tally() == {AnswerKind.NO_CONNECTION: 7}


@pytest.mark.usefixtures("quick")
async def test_caller_that_hangs_up_retries() -> None:
    """A caller that hung up retries, independent of its first request."""
    sender = await send(Endpoint(200), EventKind.HUNG_UP, events=20)
    assert sender.ledger.tally() == {AnswerKind.HUNG_UP: 20, AnswerKind.WRITTEN: 20}


@pytest.mark.usefixtures("quick")
async def test_connection_is_kept_alive() -> None:
    """One callback after another needs one connection."""
    endpoint = Endpoint(200)
    async with endpoint.listen() as port:
        sender = Vendor(EventGenerator(1, {EventKind.UNMAPPED: 1}), [port], rate=1_000)
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
    """A client and a server that exchange given bytes through a proxy."""

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
        """Send from the client, and answer from the server."""
        if answer:
            self._answers.append(answer)
        self._writer.write(data)

    async def until(self, where: bytearray, what: bytes) -> None:
        """Return when these bytes have arrived there."""
        async with asyncio.timeout(10):
            while len(where) < len(what):
                await asyncio.sleep(0.001)
        assert where == what


@pytest.mark.parametrize(("moment", "arrives"), [(Moment.BEFORE_COPY, b""), (Moment.IN_COPY, HALF)])
async def test_copy_is_held_at_its_moment(moment: Moment, arrives: bytes) -> None:
    """Before a COPY the server has nothing of it, and within it whole rows: the first half."""
    talk = Talk()
    async with talk.over() as proxy:
        catching = asyncio.create_task(proxy.catch(moment))
        await asyncio.sleep(0)
        talk.say(COPY)
        held = await catching
        await talk.until(talk.arrived, arrives)
        held.release()
        rest = COPY if not arrives else message(b"d", ROWS[len(ROWS) // 2 :]) + message(b"c", b"")
        await talk.until(talk.arrived, arrives + rest)


async def test_commit_is_held_at_its_moment() -> None:
    """Held before the COMMIT has arrived, or before its answer has."""
    talk = Talk()
    async with talk.over() as proxy:
        catching = asyncio.create_task(proxy.catch(Moment.BEFORE_COMMIT))
        await asyncio.sleep(0)
        talk.say(BEGIN)
        await talk.until(talk.arrived, BEGIN)
        talk.say(COPY, COPIED)
        await talk.until(talk.answered, COPIED)
        talk.say(COMMIT)
        held = await catching
        assert talk.arrived == BEGIN + COPY
        catching = asyncio.create_task(proxy.catch(Moment.AFTER_COMMIT))
        await asyncio.sleep(0)
        held.has_sent = True
        talk._answers.append(COMMITTED)
        held.release()
        assert await catching is held
        assert talk.arrived == BEGIN + COPY + COMMIT
        assert talk.answered == COPIED


async def test_copy_without_a_transaction_is_committed_with_its_answer() -> None:
    """A COPY outside of a transaction is committed when the server reports its rows."""
    talk = Talk()
    async with talk.over() as proxy:
        catching = asyncio.create_task(proxy.catch(Moment.AFTER_COMMIT))
        await asyncio.sleep(0)
        talk.say(COPY, DONE)
        held = await catching
        assert talk.arrived == COPY
        assert not talk.answered
        held.release()
        await talk.until(talk.answered, DONE)


DROP = message(b"B", b"unmapped_event")
KEPT = message(b"C", b"INSERT 0 1\x00") + message(b"Z", b"I")


async def test_drops_are_held_at_their_moment() -> None:
    """Held before the drops have arrived, or before the answer to their commit has; no event is."""
    talk = Talk()
    async with talk.over() as proxy:
        catching = asyncio.create_task(proxy.catch(Moment.BEFORE_DROPS))
        await asyncio.sleep(0)
        talk.say(COPY, DONE)
        await talk.until(talk.answered, DONE)
        talk.say(DROP)
        held = await catching
        assert talk.arrived == COPY
        catching = asyncio.create_task(proxy.catch(Moment.AFTER_DROPS))
        await asyncio.sleep(0)
        held.has_sent = True
        talk._answers.append(KEPT)
        held.release()
        assert await catching is held
        assert talk.arrived == COPY + DROP
        assert talk.answered == DONE


async def test_cut_connection_is_reset() -> None:
    """A cut connection is reset: neither end sees a regular close."""

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
        while not proxy.connections or not all(
            connection.server.is_open for connection in proxy.connections
        ):
            await asyncio.sleep(0.001)
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        while not resets:
            await asyncio.sleep(0.001)
    writer.close()
    proxy.close()
    server.close()
