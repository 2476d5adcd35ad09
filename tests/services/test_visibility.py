"""A row becomes visible within 90 seconds of its `received_at`, or never; readers rely on it."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.claims import Claim
from app.claims.redis import RedisClaims
from app.commit import commit, commit_contested
from app.event import Outcome
from app.settings import Settings
from bench.testbed.client import head
from bench.testbed.gateway import through
from bench.testbed.process import PATIENCE_S
from bench.testbed.proxy import Moment, Proxy
from sinks.timescale.session import role_settings
from sinks.timescale.sink import TimescaleSink
from tests.events import OCCURRED_AT, event, stored
from tests.gateways import Gateways, Services, make_claims, query
from tests.papers.test_loading import CREATE, LOAD, loaded

WRITTEN = b'{"received":1,"written":1,"duplicate":0,"dropped":0}'
AGE_MAX = Settings().event_age_max


class SlowClaims:
    """Claims that take a time of the clock `now`, and hold every event."""

    is_bypassed = False

    def __init__(self) -> None:
        self.time = OCCURRED_AT
        self.duration = timedelta(0)

    def now(self) -> datetime:
        return self.time

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        self.time += self.duration
        return [Claim.HELD] * len(event_ids)

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        pass

    async def release(self, event_ids: Sequence[bytes]) -> None:
        pass

    async def close(self) -> None:
        pass


async def test_event_that_waited_too_long_is_written_by_its_retry(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """An event that has waited too long, its claim included, is answered 500 and not written."""
    claims = SlowClaims()
    gateways.now = claims.now
    gateway = await gateways.start(claims=claims)
    age_max = gateway.gateway.settings.event_age_max
    claims.duration = age_max + timedelta(microseconds=1)
    before = await gateway.metrics()
    assert (await gateway.callback()).status == 500
    assert await stored(connection) == set()
    found = await gateway.metrics()
    [series] = [name for name in found if 'reason="too_late",' in name and 'ws_test"' in name]
    assert found[series] == before.get(series, 0) + 1
    arrived_again = claims.time
    claims.duration = age_max
    assert (await gateway.callback()).body == WRITTEN
    received_at = await connection.fetchval("SELECT received_at FROM events")
    assert received_at == arrived_again


async def test_late_event_leaves_its_neighbours_alone(
    services: Services, claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """Only the late event of a batch is not written, and its claim is free for another gateway."""
    late = event("late", received_at=OCCURRED_AT - timedelta(microseconds=1))
    batch = [event("a"), late, late, event("b")]
    outcomes = await commit(batch, claims, sink, now=lambda: OCCURRED_AT + AGE_MAX, age_max=AGE_MAX)
    assert outcomes == [Outcome.WRITTEN, Outcome.TOO_LATE, Outcome.TOO_LATE, Outcome.WRITTEN]
    assert await stored(connection) == {"a", "b"}
    other = make_claims(services, sink)
    assert await other.claim([late.event_id]) == [Claim.HELD]
    await other.close()


async def test_contested_event_that_waited_too_long_is_not_written(
    claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """A contested event is judged when its turn has come."""
    contested = event("a", received_at=OCCURRED_AT)
    committing = partial(commit_contested, contested, claims, sink, age_max=AGE_MAX)
    late = OCCURRED_AT + AGE_MAX + timedelta(microseconds=1)
    assert await committing(now=lambda: late) is Outcome.TOO_LATE
    assert await stored(connection) == set()
    assert await committing(now=lambda: OCCURRED_AT + AGE_MAX) is Outcome.WRITTEN
    assert await stored(connection) == {"a"}


async def test_event_arrives_with_the_end_of_its_body(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """A slow body takes nothing of the 90 seconds: `received_at` is read after its end."""
    gateway = await gateways.start()
    body = b"event_token=g3mz3t&created_at=1750500000&user_id=u1"
    headers = {
        "content-length": str(len(body)),
        "content-type": "application/x-www-form-urlencoded",
    }
    target = f"/ingest/adjust?secret={query().partition('secret=')[2].partition('&')[0]}"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head("POST", f"{target}&app_token=abc123token", headers=headers) + body[:20])
    async with asyncio.timeout(PATIENCE_S):
        while gateway.gateway.ingest.in_flight == 0:
            await asyncio.sleep(0.01)
        half = datetime.now().astimezone()
        writer.write(body[20:])
        assert WRITTEN in await reader.readuntil(b"}")
    writer.close()
    assert await connection.fetchval("SELECT received_at FROM events") >= half


def delivery_limits(port: int) -> list[int]:
    """The TCP_USER_TIMEOUT of each connection of this process to a port of the database."""
    limits = []
    for file in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the folder itself, and sockets that listen
            if not str(file.readlink()).startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(file.name))) as connection:
                if connection.family == socket.AF_UNIX or connection.getpeername()[1] != port:
                    continue
                limits.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    return limits


async def test_undelivered_bytes_are_given_up(database_url: str, sink: TimescaleSink) -> None:
    """The kernel does not deliver the rest of a COPY when the network is back after minutes."""
    await sink.write_contested(event("a"))
    limit = int(role_settings(5)["statement_timeout"])
    port = urlsplit(database_url).port or 5432
    assert sorted(delivery_limits(port))[-2:] == [limit, limit]


@pytest.fixture
async def proxy(database_url: str) -> AsyncIterator[Proxy]:
    """A way to the test's database on which a commit can be held."""
    proxy = Proxy(urlsplit(database_url).port or 5432)
    await proxy.open()
    yield proxy
    proxy.close()


async def test_look_back_finds_the_rows_of_crossing_commits(
    gateways: Gateways, proxy: Proxy, connection: asyncpg.Connection, database_url: str
) -> None:
    """A reader of `received_at > last` misses a row for good; the documented one misses none."""
    url = through([proxy], database_url)
    first = await gateways.start(DATABASE_URL=url, COMMIT_TIMEOUT_S="20", CLAIM_LEASE_S="40")
    second = await gateways.start()
    await connection.execute(CREATE)
    for number in range(3):
        catching = asyncio.create_task(proxy.catch(Moment.BEFORE_COMMIT))
        # With a stable ID a batch has a COMMIT of its own.
        sent = first.callback(user_id=f"held {number}", transaction_id=f"t{number}")
        sending = asyncio.create_task(sent)
        held = await catching
        assert (await second.callback(user_id=f"u{number}")).body == WRITTEN
        await connection.execute(LOAD)
        last = await connection.fetchval("SELECT max(received_at) FROM events")
        held.release()
        assert (await sending).body == WRITTEN
        seen = await connection.fetch("SELECT user_id FROM events WHERE received_at > $1", last)
        assert seen == []
        assert len(await loaded(connection)) == 2 * number + 1
        await connection.execute(LOAD)
        assert len(await loaded(connection)) == 2 * number + 2
