"""A database that is suddenly out of reach: no write waits longer than the commit time-out."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from app.event import Event, Outcome
from sinks.encoding import as_arrays
from sinks.timescale import TimescaleSink
from tests.events import events, stored

COMMIT_TIMEOUT_S = 0.5


class Wire:
    """A wire to the database that can be cut, so that nothing arrives and nobody is told."""

    def __init__(self, database_url: str) -> None:
        self._server = urlsplit(database_url)
        self._listener: asyncio.Server | None = None
        self._ends: list[asyncio.StreamWriter] = []
        self._is_whole = asyncio.Event()
        self._is_whole.set()

    async def lay(self) -> str:
        """Return the address of the database at this end of the wire."""
        self._listener = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        port = self._listener.sockets[0].getsockname()[1]
        user, _, _ = self._server.netloc.rpartition("@")
        return urlunsplit(self._server._replace(netloc=f"{user}@127.0.0.1:{port}"))

    def cut(self) -> None:
        """Let nothing pass, in either direction."""
        self._is_whole.clear()

    def mend(self) -> None:
        """Let new connections pass; those of before the cut stay as they are."""
        self._is_whole = asyncio.Event()
        self._is_whole.set()

    async def take_up(self) -> None:
        """End it."""
        for end in self._ends:
            end.transport.abort()
        assert self._listener is not None
        self._listener.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self._server.hostname is not None
        theirs = await asyncio.open_connection(self._server.hostname, self._server.port)
        self._ends += (writer, theirs[1])
        with suppress(ConnectionError):
            await asyncio.gather(self._pass_on(reader, theirs[1]), self._pass_on(theirs[0], writer))

    async def _pass_on(self, source: asyncio.StreamReader, drain: asyncio.StreamWriter) -> None:
        is_whole = self._is_whole
        while data := await source.read(65_536):
            await is_whole.wait()
            drain.write(data)
        drain.close()


@pytest.fixture
async def wire(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Wire]:
    """A wire to the test's database."""
    monkeypatch.setattr("sinks.lane.CLOSE_TIMEOUT_S", 0.1)
    wire = Wire(database_url)
    yield wire
    await wire.take_up()


@pytest.mark.parametrize("has_stable_id", [False, True])
@pytest.mark.parametrize("contested", [False, True])
async def test_cut_wire(
    wire: Wire, connection: asyncpg.Connection, contested: bool, has_stable_id: bool
) -> None:
    """A write over a wire that was cut raises in time, and the next connection works."""
    sink = TimescaleSink(await wire.lay(), commit_timeout_s=COMMIT_TIMEOUT_S)
    first, second = events("a", "b", has_stable_id=has_stable_id)
    assert await sink.write([first], contested=contested) == [Outcome.WRITTEN]
    wire.cut()
    for _ in range(2):
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await sink.write([second], contested=contested)
        assert time.monotonic() - started < 3 * COMMIT_TIMEOUT_S
    wire.mend()
    outcome = await sink.write([second], contested=contested)
    assert outcome in ([Outcome.WRITTEN], [Outcome.DUPLICATE])
    assert await stored(connection) == {"a", "b"}
    await sink.close()


async def test_wire_cut_during_the_search(
    wire: Wire, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it wait when the cut comes while the batch is being tried row by row."""
    sink = TimescaleSink(await wire.lay(), commit_timeout_s=COMMIT_TIMEOUT_S)
    await sink.write(events("a"), contested=False)

    def cut_and_encode(batch: Sequence[Event]) -> list[list[object]]:
        wire.cut()
        return as_arrays(batch)

    monkeypatch.setattr("sinks.timescale.as_arrays", cut_and_encode)
    started = time.monotonic()
    with pytest.raises(TimeoutError):
        await sink.write(events("a", "b"), contested=False)
    assert time.monotonic() - started < 3 * COMMIT_TIMEOUT_S
    monkeypatch.undo()
    wire.mend()
    assert await sink.write(events("c"), contested=False) == [Outcome.WRITTEN]
    assert await stored(connection) >= {"a", "c"}
    await sink.close()
