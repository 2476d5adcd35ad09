"""The claim store behind Sentinels, and on a primary that becomes a replica."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from app.claims import Claim
from app.claims.redis import RedisClaims
from bench.testbed.callbacks import SECRET, WORKSPACES
from bench.testbed.ports import free_port
from bench.testbed.process import PATIENCE_S, POLL_S
from tests.adversity.test_redis_cluster import (
    BYPASSED,
    MAKE,
    ids,
    until_all_answer,
    until_claims_work,
)
from tests.adversity.test_rolling import assert_all_final, assert_exactly_once, calling
from tests.gateways import PATIENT, Process
from tests.redis_topologies import COMMON, PASSWORD, SERVICE, Watched, client_of, starting, url_of

DATA = secrets.token_hex(6)


@pytest.fixture
async def make() -> AsyncIterator[MAKE]:
    """Makes the claims of a process, by the address of its Redis."""
    stores = []

    def make(url: str) -> RedisClaims:
        claims = RedisClaims(url, generation=lambda: DATA, lease_s=60, seen_window_d=1)
        stores.append(claims)
        return claims

    yield make
    for claims in stores:
        await claims.close()


async def test_killed_primary_behind_sentinels_fails_no_callback(
    redis_watched: Watched, database_url: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """No callback fails, is lost or doubled; the promoted replica takes over."""
    (tmp_path / "workspaces.toml").write_text(WORKSPACES)
    settings = PATIENT | {"ADJUST_CALLBACK_SECRET": SECRET}
    with Process(database_url, redis_watched.url, tmp_path, **settings) as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with calling(process.port) as vendor:
            await until_claims_work([process])
            quiet = (await process.metrics())[BYPASSED]
            killed = await redis_watched.primary()
            await redis_watched.hasten()
            try:
                killed.kill()
                await redis_watched.until_promoted(killed)
                await until_claims_work([process])
                assert (await process.metrics())[BYPASSED] > quiet
            finally:
                await redis_watched.mend()
            await until_claims_work([process])
    assert_all_final(vendor)
    await assert_exactly_once(vendor, connection)


async def test_claims_follow_a_planned_failover(make: MAKE, redis_watched: Watched) -> None:
    """After SENTINEL FAILOVER every gateway uses the new primary."""
    first, second = make(redis_watched.url), make(redis_watched.url)
    await until_all_answer(first, second)
    before = await redis_watched.primary()
    await redis_watched.switch(before)
    await redis_watched.mend()
    after = await redis_watched.primary()
    assert after is not before
    await until_all_answer(first, second)
    events = ids()
    await first.claim(events)
    async with client_of(after) as redis:
        assert await redis.exists(*(DATA.encode() + event_id for event_id in events)) == len(events)


async def test_one_sentinel_is_enough(make: MAKE, redis_watched: Watched) -> None:
    """Sentinels out of reach before and after it in the address do not matter."""
    [sentinel, *_] = redis_watched.sentinels
    hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel.port},127.0.0.1:{free_port()}"
    url = f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}"
    await until_all_answer(make(url), make(redis_watched.url))


async def test_unknown_service_bypasses_the_claims(make: MAKE, redis_watched: Watched) -> None:
    """A service that no Sentinel knows is an unavailable Redis."""
    claims = make(redis_watched.url.replace(f"/{SERVICE}", "/other"))
    assert await claims.claim(ids(3)) == [Claim.HELD] * 3
    # A claim does not wait for the end of a slow discovery.
    async with asyncio.timeout(PATIENCE_S):
        while not claims.is_bypassed:
            await asyncio.sleep(POLL_S)


async def test_replica_bypasses_the_claims(make: MAKE, redis_program: Path, tmp_path: Path) -> None:
    """Events are held without a claim until the server is a primary again."""
    with starting(tmp_path, redis_program) as start:
        server = start("alone", COMMON)
        first, second = make(url_of(server)), make(url_of(server))
        await until_all_answer(first, second)
        async with client_of(server) as redis:
            await redis.replicaof("127.0.0.1", free_port())
            assert await first.claim(ids(3)) == [Claim.HELD] * 3
            assert first.is_bypassed
            await redis.replicaof("NO", "ONE")
        await until_all_answer(first, second)
        assert not first.is_bypassed
