"""A database that is suddenly out of reach: no write waits longer than the commit time-out."""

import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.event import Event, Outcome
from bench.testbed.gateway import through
from bench.testbed.process import PATIENCE_S
from bench.testbed.proxy import Proxy
from sinks.timescale.encoding import as_arrays
from sinks.timescale.sink import TimescaleSink
from tests.events import events, stored, write

COMMIT_TIMEOUT_S = 2.0
# TCP gives up a cut wire after minutes.
GIVEN_UP_MAX_S = 10.0


@pytest.fixture
async def proxy(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """A way to the test's database that can be closed without a packet to either side."""
    monkeypatch.setattr("sinks.timescale.hosts.CLOSE_TIMEOUT_S", 0.1)
    proxy = Proxy(urlsplit(database_url).port or 5432)
    await proxy.open()
    yield proxy
    proxy.close()


@contextmanager
def hasty(sink: TimescaleSink) -> Iterator[None]:
    """Shorten the time-out of a sink; over a healthy wire, a busy machine may need more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sink, "_commit_timeout_s", COMMIT_TIMEOUT_S)
        yield


@pytest.mark.parametrize("has_stable_id", [False, True])
@pytest.mark.parametrize("contested", [False, True])
async def test_cut_wire_fails_the_write_in_time(
    proxy: Proxy,
    database_url: str,
    connection: asyncpg.Connection,
    contested: bool,
    has_stable_id: bool,
) -> None:
    """A write over a wire that was cut raises in time, and the next connection works."""
    sink = TimescaleSink(through([proxy], database_url), commit_timeout_s=PATIENCE_S)
    first, second = events("a", "b", has_stable_id=has_stable_id)
    assert await write(sink, [first], contested=contested) == [Outcome.WRITTEN]
    proxy.blackhole()
    with hasty(sink):
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(TimeoutError):
                await write(sink, [second], contested=contested)
            assert time.monotonic() - started < GIVEN_UP_MAX_S
    proxy.restore()
    outcome = await write(sink, [second], contested=contested)
    assert outcome in ([Outcome.WRITTEN], [Outcome.DUPLICATE])
    assert await stored(connection) == {"a", "b"}
    await sink.close()


async def test_wire_cut_during_the_search_fails_the_write_in_time(
    proxy: Proxy,
    database_url: str,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write does not wait either when the wire is cut while the batch is written row by row."""
    sink = TimescaleSink(through([proxy], database_url), commit_timeout_s=PATIENCE_S)
    await sink.write(events("a"))

    def fall_silent_and_encode(batch: Sequence[Event]) -> list[list[object]]:
        proxy.blackhole()
        return as_arrays(batch)

    with hasty(sink), monkeypatch.context() as patch:
        patch.setattr("sinks.timescale.statements.as_arrays", fall_silent_and_encode)
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            await sink.write(events("a", "b"))
        assert time.monotonic() - started < GIVEN_UP_MAX_S
    proxy.restore()
    assert await sink.write(events("c")) == [Outcome.WRITTEN]
    assert await stored(connection) >= {"a", "c"}
    await sink.close()
