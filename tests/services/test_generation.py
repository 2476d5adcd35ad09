"""The identity of the data, and the clock of its server."""

import asyncio
import itertools
import time

import asyncpg
import pytest

from sinks.timescale.connection import ReconnectingConnection
from sinks.timescale.sink import TimescaleSink
from tests.events import generation_of


async def test_generation_is_independent_of_the_session(database_url: str) -> None:
    """Settings of the session, such as the time zone, do not change the name of the data."""
    names = set()
    for zone in ("GMT", "Asia/Tokyo", "-03"):
        as_told = {"timezone": zone, "datestyle": "German", "extra_float_digits": "-15"}
        connection = await asyncpg.connect(database_url, server_settings=as_told)
        names.add(await generation_of(connection))
        await connection.close()
    (name,) = names
    assert len(name) == 12


async def test_clock_of_the_server_is_known(
    database_url: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference of the clocks follows ours, and is forgotten when nobody answers."""
    slow_s = 0
    sink = TimescaleSink(database_url, commit_timeout_s=5, now=lambda: time.time() - slow_s)
    await sink.ping()
    assert abs(sink.clock_ahead_s or 90_000) < 5
    slow_s = 90_000
    async with asyncio.timeout(10):
        while not -90_005 < (sink.clock_ahead_s or 0) < -89_995:
            await asyncio.sleep(0.02)
    monkeypatch.setattr("sinks.timescale.connection.CLOCK_MAX_AGE_S", 0.5)
    async with connection.transaction():
        await connection.execute("LOCK TABLE generation IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(10):
            while sink.clock_ahead_s is not None:
                await asyncio.sleep(0.02)
    await sink.close()


async def test_jump_of_our_clock_is_part_of_the_difference(database_url: str) -> None:
    """Our clock may jump at any moment: the difference is that of its last reading."""
    jumps = itertools.count(step=90_000)
    jumped_s = 0

    def now() -> float:
        nonlocal jumped_s
        jumped_s = next(jumps)
        return time.time() + jumped_s

    replaced = ReconnectingConnection(database_url, commit_timeout_s=5, lock_timeout_s=1, now=now)
    for _ in range(2):
        async with replaced:
            await replaced.refresh()
        ahead_s = replaced.clock_ahead_s
        assert ahead_s is not None
        assert abs(ahead_s - jumped_s) < 5
    await replaced.close()
