"""Whose data it is: a snapshot that was put back is other data, and the clock there is known."""

import asyncio
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from app import embedded
from app.embedded import Embedded
from sinks import schema
from sinks.timescale import TimescaleSink
from tests.events import generation_of
from tests.gateways import Gateways

pytestmark = pytest.mark.services


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Embedded]:
    """Servers of the test's own, which it may stop."""
    with embedded.start(tmp_path / "own", fallback=True) as servers:
        yield servers


async def test_snapshot_that_is_put_back_is_not_believed_seen(
    servers: Embedded, tmp_path: Path
) -> None:
    """What Redis has seen and the snapshot of the disk lacks is written again."""
    connection = await asyncpg.connect(servers.database_url)
    await schema.migrate(connection)
    before = await generation_of(connection)
    await connection.close()
    data, snapshot = servers.postgres.folder, tmp_path / "snapshot"
    servers.postgres.stop()
    shutil.copytree(data, snapshot, copy_function=shutil.copy2)
    servers.postgres.start()
    gateways = Gateways(servers.database_url, servers.redis_url, tmp_path)
    gateway = await gateways.start()
    assert b'"written":1' in (await gateway.callback()).body
    assert b'"duplicate":1' in (await gateway.callback()).body
    await gateways.stop()
    servers.postgres.stop()
    for path in data.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(snapshot, data, dirs_exist_ok=True)
    own(data)
    servers.postgres.start()
    connection = await asyncpg.connect(servers.database_url)
    after = await generation_of(connection)
    assert after != before
    assert await connection.fetchval("SELECT count(*) FROM events") == 0
    gateway = await gateways.start()
    assert b'"written":1' in (await gateway.callback()).body
    await gateways.stop()
    await connection.close()


def own(data: Path) -> None:
    """Give what was copied to the account of the folder."""
    there = data.stat()
    for path in data.rglob("*"):
        shutil.chown(path, there.st_uid, there.st_gid)


async def test_generation_does_not_follow_the_session(database_url: str) -> None:
    """Settings of the session, as the time zone, change nothing in the name of the data."""
    names = set()
    for zone in ("GMT", "Asia/Tokyo", "-03"):
        as_told = {"timezone": zone, "datestyle": "German", "extra_float_digits": "-15"}
        connection = await asyncpg.connect(database_url, server_settings=as_told)
        names.add(await generation_of(connection))
        await connection.close()
    (name,) = names
    assert len(name) == 12


async def test_clock_of_the_server_is_known(
    sink: TimescaleSink, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The difference of the clocks follows ours, and is forgotten when nobody answers."""
    assert sink.clock_ahead_s is not None
    assert abs(sink.clock_ahead_s) < 5
    real = time.time
    monkeypatch.setattr("sinks.schema.time.time", lambda: real() - 90_000)
    async with asyncio.timeout(10):
        while not -90_005 < (sink.clock_ahead_s or 0) < -89_995:
            await asyncio.sleep(0.02)
    monkeypatch.setattr("sinks.lane.CLOCK_MAX_AGE_S", 0.5)
    async with connection.transaction():
        await connection.execute("LOCK TABLE generation IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(10):
            while sink.clock_ahead_s is not None:
                await asyncio.sleep(0.02)
