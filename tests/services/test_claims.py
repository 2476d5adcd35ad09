"""The claim store on a real Redis: leases, settling, another database, an unavailable Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from secrets import token_hex

import asyncpg
import pytest
from redis.asyncio import Redis

from app.claims import Claim
from app.claims.redis import RedisClaims
from app.event import Outcome
from bench.testbed.process import PATIENCE_S
from sinks.timescale.sink import TimescaleSink
from tests.events import commit, event, events, stored, until_lost
from tests.gateways import Services, make_claims


@pytest.fixture(params=["redis_server", "redis_cluster", "redis_watched"])
def store(
    request: pytest.FixtureRequest, services: Services, monkeypatch: pytest.MonkeyPatch
) -> Services:
    """The servers, with each kind of Redis in turn, and time for a busy machine."""
    monkeypatch.setattr("app.claims.time_limit.CLAIM_TIMEOUT_S", 5.0)
    if request.param == "redis_server":
        return services
    return replace(services, redis_url=request.getfixturevalue(request.param).url)


# A third of it is far longer than a pause of Redis on a busy machine.
HELD_S = 1.5
Another = Callable[..., RedisClaims]


@pytest.fixture
async def another(store: Services, sink: TimescaleSink) -> AsyncIterator[Another]:
    """Makes the claims of another process, and closes them after the test."""
    made: list[RedisClaims] = []

    def make(**settings: float) -> RedisClaims:
        made.append(make_claims(store, sink, **settings))
        return made[-1]

    yield make
    for claims in made:
        await claims.close()


@pytest.fixture
def claims(another: Another) -> RedisClaims:
    """Claims of one process."""
    return another()


async def test_failure_releases_the_claim(
    another: Another, claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """After a failed write another process holds the claim at once."""
    await connection.execute("ALTER TABLE events RENAME TO elsewhere")
    [outcome] = await commit(events("a"), claims, sink)
    assert outcome is Outcome.FAILED
    other = another()
    assert await other.claim([event("a").event_id]) == [Claim.HELD]


async def test_claim_is_released_though_the_database_is_gone(store: Services) -> None:
    """Claims are released under the last known generation while there is none."""
    known: list[str | None] = [token_hex(6)]
    ours, others = (
        RedisClaims(store.redis_url, generation=lambda: known[-1], lease_s=15, seen_window_d=30)
        for _ in range(2)
    )
    id_ = event("a").event_id
    async with asyncio.timeout(PATIENCE_S):
        assert await ours.claim([id_]) == [Claim.HELD]
        assert await others.claim([id_]) == [Claim.CONTESTED]
        known.append(None)
        await ours.release([id_])
        known.pop()
        found = await others.claim([id_])
    await ours.close()
    await others.close()
    assert found == [Claim.HELD]


async def test_seen_is_not_written_again(
    another: Another, claims: RedisClaims, sink: TimescaleSink
) -> None:
    """A committed event is seen by every process, from the next claim on."""
    assert await commit(events("a"), claims, sink) == [Outcome.WRITTEN]
    assert await claims.claim([event("a").event_id]) == [Claim.SEEN]
    other = another()
    assert await other.claim([event("a").event_id]) == [Claim.SEEN]


async def test_seen_is_settled_when_idle(
    another: Another, claims: RedisClaims, sink: TimescaleSink
) -> None:
    """A commit becomes known to other processes also without another callback."""
    await commit(events("a"), claims, sink)
    other = another()
    async with asyncio.timeout(PATIENCE_S):
        while (claim := await other.claim([event("a").event_id])) != [Claim.SEEN]:
            assert claim == [Claim.CONTESTED]
            await asyncio.sleep(0.02)


async def test_claim_of_a_dead_process_ends(another: Another) -> None:
    """The claim of a crashed process ends with its lease, and not before."""
    dead = another(lease_s=0.2)
    other = another()
    begun = time.time()
    assert await dead.claim([event("a").event_id]) == [Claim.HELD]
    async with asyncio.timeout(PATIENCE_S):
        while await other.claim([event("a").event_id]) != [Claim.HELD]:
            await asyncio.sleep(0.02)
    assert time.time() - begun > 0.198  # Redis counts in whole milliseconds
    # A process that was only suspended cannot release the claim of its successor.
    await dead.release([event("a").event_id])
    third = another()
    assert await third.claim([event("a").event_id]) == [Claim.CONTESTED]


async def test_other_database_inherits_nothing(
    claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """The memory of Redis for other data does not count."""
    assert await commit(events("a"), claims, sink) == [Outcome.WRITTEN]
    assert await claims.claim([event("a").event_id]) == [Claim.SEEN]
    await connection.execute("DELETE FROM events")
    await connection.execute("UPDATE generation SET value = 'restored'")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'flokit-gateway' AND datname = current_database()"
    )
    await until_lost(sink)
    assert await commit(events("a"), claims, sink) == [Outcome.WRITTEN]
    assert await stored(connection) == {"a"}


async def test_silent_redis_costs_one_time_limit_a_second(
    sink: TimescaleSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that accepts and never answers costs 100 ms, once a second, and no outcome."""
    # Ten times as long, so that a pause of a busy machine is short beside them.
    monkeypatch.setattr("app.claims.time_limit.CLAIM_TIMEOUT_S", 1.0)
    monkeypatch.setattr("app.claims.primaries.BACKOFF_S", 10.0)

    async def listen_only(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(1024):
            pass
        writer.close()

    silent = await asyncio.start_server(listen_only, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    claims = RedisClaims(
        f"redis://127.0.0.1:{port}/0",
        generation=lambda: sink.generation, lease_s=15, seen_window_d=30,
    )  # fmt: skip
    clock = asyncio.get_running_loop().time
    started = clock()
    assert await commit(events("a"), claims, sink) == [Outcome.WRITTEN]
    first = clock() - started
    assert claims.is_bypassed
    started = clock()
    for _ in range(5):
        assert await claims.claim([b"x" * 16]) == [Claim.HELD]
    assert clock() - started < 1 <= first
    await claims.close()
    silent.close()
    await silent.wait_closed()


async def test_late_answer_is_not_read_by_the_next_claim(
    services: Services, sink: TimescaleSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to a claim that has timed out is discarded with its connection."""
    monkeypatch.setattr("app.claims.primaries.BACKOFF_S", 0.0)
    claims = make_claims(services, sink)
    await commit(events("seen"), claims, sink)
    async with Redis.from_url(services.redis_url) as redis, asyncio.timeout(PATIENCE_S):
        while await claims.claim([event("seen").event_id]) != [Claim.SEEN]:
            pass
        await redis.client_pause(
            60_000, all=False
        )  # scripts wait, and what ends the pause does not
        try:
            two = [event("a").event_id, event("b").event_id]
            assert await claims.claim(two) == [Claim.HELD] * 2
            assert claims.is_bypassed
        finally:
            await redis.client_unpause()
        while await claims.claim([event("seen").event_id]) != [Claim.SEEN]:
            pass
    await claims.close()


@pytest.fixture
async def impatient(
    services: Services, sink: TimescaleSink, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[RedisClaims]:
    """Claims of one process that has seen an event, with a third of the time of a held loop."""
    monkeypatch.setattr("app.claims.time_limit.CLAIM_TIMEOUT_S", PATIENCE_S)
    claims = make_claims(services, sink)
    await commit(events("seen"), claims, sink)
    assert await claims.claim([event("seen").event_id]) == [Claim.SEEN]
    monkeypatch.setattr("app.claims.time_limit.CLAIM_TIMEOUT_S", HELD_S / 3)
    yield claims
    await claims.close()


@pytest.mark.parametrize("turns", [0, 1, 2])
async def test_claim_outlasts_a_held_loop(impatient: RedisClaims, turns: int) -> None:
    """The answer of a healthy Redis is read, however long the loop is held meanwhile."""
    claim = asyncio.create_task(impatient.claim([event("seen").event_id]))
    for _ in range(turns):  # until it is sent, or before
        await asyncio.sleep(0)
    time.sleep(HELD_S)  # noqa: ASYNC251 - holds the loop on purpose
    assert await claim == [Claim.SEEN]
    assert not impatient.is_bypassed


async def test_silent_redis_is_given_up_while_the_loop_is_held(sink: TimescaleSink) -> None:
    """Calls that hold the loop again and again prolong a claim, but not without end."""

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    silent = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    claims = RedisClaims(
        f"redis://127.0.0.1:{port}/0",
        generation=lambda: sink.generation, lease_s=15, seen_window_d=30,
    )  # fmt: skip
    claim = asyncio.create_task(claims.claim([b"x" * 16]))
    for _ in range(100):
        time.sleep(0.05)  # noqa: ASYNC251 - holds the loop on purpose
        await asyncio.sleep(0)
    assert claim.done()
    assert claims.is_bypassed
    await claims.close()
    silent.close()
