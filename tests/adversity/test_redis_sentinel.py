"""The claim store on the primary that Sentinels watch over, and on one that becomes a replica."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from app.claims.redis import RedisClaims
from app.dev.processes import free_port
from app.event import Claim
from bench.testbed.callbacks import SECRET, WORKSPACES
from bench.testbed.ledger import AnswerKind
from tests.adversity.test_redis_cluster import (
    BYPASSED,
    MAKE,
    ids,
    until_all_answer,
    until_claims_work,
)
from tests.adversity.test_rolling import assert_exactly_once, calling
from tests.gateways import Process
from tests.redis_topologies import COMMON, PASSWORD, SERVICE, Watched, asking, starting, url_of

DATA = secrets.token_hex(6)


@pytest.fixture
async def make() -> AsyncIterator[MAKE]:
    """Make the claims of a process; the last word is the address of its Redis."""
    stores = []

    def make(url: str) -> RedisClaims:
        claims = RedisClaims(url, generation=lambda: DATA, lease_s=60, seen_window_d=1)
        stores.append(claims)
        return claims

    yield make
    for claims in stores:
        await claims.close()


async def test_primary_killed_under_load_of_sentinels(
    redis_watched: Watched, database_url: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """A replica that is promoted takes the claims; no callback fails, is lost or doubled."""
    (tmp_path / "workspaces.toml").write_text(WORKSPACES)
    secret = {"ADJUST_CALLBACK_SECRET": SECRET}
    with Process(database_url, redis_watched.url, tmp_path, **secret) as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with calling(process.port) as vendor:
            await until_claims_work([process])
            quiet = (await process.metrics())[BYPASSED]
            killed = await redis_watched.primary()
            killed.kill()
            await redis_watched.until_promoted(killed)
            await until_claims_work([process])
            assert (await process.metrics())[BYPASSED] > quiet
            await redis_watched.rejoin(killed)
            await until_claims_work([process])
    assert vendor.ledger.tally().keys() == {
        AnswerKind.WRITTEN,
        AnswerKind.DUPLICATE,
        AnswerKind.DROPPED,
    }
    await assert_exactly_once(vendor, connection)


async def test_planned_switch(make: MAKE, redis_watched: Watched) -> None:
    """Told to switch, Sentinels do; each gateway follows, whatever it was connected to."""
    first, second = make(redis_watched.url), make(redis_watched.url)
    await until_all_answer(first, second)
    before = await redis_watched.primary()
    await redis_watched.switch()
    await redis_watched.until_promoted(before)
    await redis_watched.rejoin(before)
    after = await redis_watched.primary()
    assert after is not before
    await until_all_answer(first, second)
    events = ids()
    await first.claim(events)
    async with asking(after) as redis:
        assert await redis.exists(*(DATA.encode() + event_id for event_id in events)) == len(events)


async def test_sentinels_out_of_reach(make: MAKE, redis_watched: Watched) -> None:
    """One Sentinel that answers is enough, wherever it stands in the address."""
    [sentinel, *_] = redis_watched.sentinels
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port},127.0.0.1:{free_port()}"
    url = f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}"
    await until_all_answer(make(url), make(redis_watched.url))


async def test_unknown_service(make: MAKE, redis_watched: Watched) -> None:
    """A service that no Sentinel knows is a Redis that is away: all is held, and it is told."""
    claims = make(redis_watched.url.replace(f"/{SERVICE}", "/other"))
    assert await claims.claim(ids(3)) == [Claim.HELD] * 3
    assert claims.is_bypassed


async def test_primary_becomes_a_replica(make: MAKE, redis_program: Path, tmp_path: Path) -> None:
    """Behind an address that leads to a replica by now, all is held until it is a primary again."""
    with starting(tmp_path, redis_program) as start:
        server = start("alone", COMMON)
        first, second = make(url_of(server)), make(url_of(server))
        await until_all_answer(first, second)
        async with asking(server) as redis:
            await redis.replicaof("127.0.0.1", free_port())
            assert await first.claim(ids(3)) == [Claim.HELD] * 3
            assert first.is_bypassed
            await redis.replicaof("NO", "ONE")
        await until_all_answer(first, second)
        assert not first.is_bypassed
