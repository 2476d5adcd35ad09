"""Section 5 of the contract: whatever happens to claims, callers and batches, one row each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence

import asyncpg
import pytest
from redis.asyncio import Redis

from app.claims import Claims, RedisClaims
from app.errors import WriteFailed
from app.event import Claim, Outcome
from app.ingest import commit, commit_contested
from sinks.timescale import TimescaleSink
from tests.client import head
from tests.events import event, events
from tests.gateways import Gateways, Services, query, workspaces_toml
from tests.test_timescale import stored, until_lost
from tests.test_vectors import receipt, send
from tests.vectors import VECTORS, app_token

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
DUPLICATE = {"received": 1, "written": 0, "duplicate": 1, "dropped": 0}


class AlwaysHeld:
    """No claim store at all: everything is ours to write."""

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        return [Claim.HELD] * len(event_ids)

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        pass

    async def release(self, event_ids: Sequence[bytes]) -> None:
        pass

    async def close(self) -> None:
        pass


class AlwaysBusy(AlwaysHeld):
    """Somebody else is always writing it."""

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        return [Claim.BUSY] * len(event_ids)


@pytest.fixture
async def sink(database_url: str) -> AsyncIterator[TimescaleSink]:
    """The sink on the test's database, connected."""
    sink = TimescaleSink(database_url, commit_timeout_s=5)
    await sink.write([], contested=False)
    yield sink
    await sink.close()


@pytest.fixture
async def claims(services: Services, sink: TimescaleSink) -> AsyncIterator[RedisClaims]:
    """Claims of one process."""
    claims = make_claims(services, sink)
    yield claims
    await claims.close()


def make_claims(services: Services, sink: TimescaleSink, lease_s: float = 15) -> RedisClaims:
    """Claims of another process on the same database."""
    return RedisClaims(
        services.redis_url, generation=lambda: sink.generation, lease_s=lease_s, seen_window_d=30
    )


@pytest.mark.parametrize("store", [None, AlwaysHeld(), AlwaysBusy()], ids=["redis", "held", "busy"])
async def test_claims_change_no_outcome(
    gateways: Gateways, connection: asyncpg.Connection, store: Claims | None
) -> None:
    """The same callbacks have the same outcomes and rows with any claim store."""
    tokens = [app_token(vector["id"]) for vector in VECTORS]
    (gateways.folder / "workspaces.toml").write_text(workspaces_toml(*tokens))
    gateway = await gateways.start(claims=store)
    for vector in VECTORS:
        answer = await send(gateway.port, vector)
        assert answer.status == vector["expect"]["status"]
        if "outcome" in vector["expect"]:
            assert answer.json == receipt(vector["expect"]["outcome"]), vector["id"]
    rows = await connection.fetchrow("SELECT count(*), count(DISTINCT event_id) FROM events")
    assert rows is not None
    assert rows[0] == rows[1]


@pytest.mark.parametrize("store", [None, AlwaysHeld(), AlwaysBusy()], ids=["redis", "held", "busy"])
async def test_simultaneous_twins(
    gateways: Gateways, connection: asyncpg.Connection, store: Claims | None
) -> None:
    """Of many twins at once, to two gateways, one is told written and all others duplicate."""
    first, second = await gateways.start(claims=store), await gateways.start(claims=store)
    answers = await asyncio.gather(
        *(
            gateway.callback(user_id=f"twin-{number}")
            for _ in range(5)
            for number in range(6)
            for gateway in (first, second)
        )
    )
    told = Counter(answer.body for answer in answers)
    assert sorted(told.values()) == [6, 54]
    assert await stored(connection) == {f"twin-{number}" for number in range(6)}


async def test_repeats_inside_a_batch(
    claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """Repeats fold into one write; the first is told written, the others duplicate."""
    outcomes = await commit(events("a", "b", "a", "a"), claims, sink)
    assert [o for o in outcomes if isinstance(o, Outcome)] == [
        Outcome.WRITTEN, Outcome.WRITTEN, Outcome.DUPLICATE, Outcome.DUPLICATE,
    ]  # fmt: skip
    assert await stored(connection) == {"a", "b"}


async def test_repeats_share_a_failure(
    claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """A repeat is not told duplicate when the write that it was folded into failed."""
    await connection.execute("ALTER TABLE events RENAME TO elsewhere")
    outcomes = await commit(events("a", "a"), claims, sink)
    assert [type(outcome) for outcome in outcomes] == [WriteFailed, WriteFailed]
    await connection.execute("ALTER TABLE elsewhere RENAME TO events")
    outcomes = await commit(events("a", "a"), claims, sink)
    assert outcomes == [Outcome.WRITTEN, Outcome.DUPLICATE]


async def test_failure_releases_the_claim(
    services: Services, claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """After a failed write another process holds the claim at once."""
    await connection.execute("ALTER TABLE events RENAME TO elsewhere")
    await commit(events("a"), claims, sink)
    other = make_claims(services, sink)
    assert await other.claim([event("a").event_id]) == [Claim.HELD]
    await other.close()


async def test_seen_is_not_written_again(
    services: Services, claims: RedisClaims, sink: TimescaleSink
) -> None:
    """What was committed is seen by every process, as soon as the next claim is made."""
    assert await commit(events("a"), claims, sink) == [Outcome.WRITTEN]
    assert await claims.claim([event("a").event_id]) == [Claim.SEEN]
    other = make_claims(services, sink)
    assert await other.claim([event("a").event_id]) == [Claim.SEEN]
    await other.close()


async def test_seen_is_settled_when_idle(
    services: Services, claims: RedisClaims, sink: TimescaleSink
) -> None:
    """Within a second the commit is known to others, also when no further callback comes."""
    await commit(events("a"), claims, sink)
    other = make_claims(services, sink)
    assert await other.claim([event("a").event_id]) == [Claim.BUSY]
    async with asyncio.timeout(1.5):
        while await other.claim([event("a").event_id]) != [Claim.SEEN]:
            await asyncio.sleep(0.02)
    await other.close()


async def test_claim_of_a_dead_process_ends(services: Services, sink: TimescaleSink) -> None:
    """A crash gives the claim back when its lease ends, and only then."""
    dead = make_claims(services, sink, lease_s=0.2)
    other = make_claims(services, sink)
    assert await dead.claim([event("a").event_id]) == [Claim.HELD]
    assert await other.claim([event("a").event_id]) == [Claim.BUSY]
    async with asyncio.timeout(5):
        while await other.claim([event("a").event_id]) != [Claim.HELD]:
            await asyncio.sleep(0.02)
    # Who comes back to life cannot give away what is another's by now.
    await dead.release([event("a").event_id])
    third = make_claims(services, sink)
    assert await third.claim([event("a").event_id]) == [Claim.BUSY]
    for store in (dead, other, third):
        await store.close()


async def test_busy_event_does_not_hold_its_neighbours(
    services: Services, claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """What another process is writing is decided alone, after the others have been answered."""
    other = make_claims(services, sink)
    await other.claim([event("a").event_id])
    assert await commit(events("a", "b"), claims, sink) == [Outcome.CONTESTED, Outcome.WRITTEN]
    assert await commit_contested(events("a"), claims, sink) == [Outcome.WRITTEN]
    # The other was slow, not dead: it finds the row.
    assert await commit_contested(events("a"), other, sink) == [Outcome.DUPLICATE]
    assert await stored(connection) == {"a", "b"}
    await other.close()


async def test_other_database_inherits_nothing(
    claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """When the data is other data, what Redis remembers of the old does not count."""
    assert await commit(events("a"), claims, sink) == [Outcome.WRITTEN]
    assert await claims.claim([event("a").event_id]) == [Claim.SEEN]
    await connection.execute("TRUNCATE events")
    await connection.execute("UPDATE generation SET value = 'restored'")
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'flokit-gateway' AND datname = current_database()"
    )
    await until_lost(sink)
    assert await commit(events("a"), claims, sink) == [Outcome.WRITTEN]
    assert await stored(connection) == {"a"}


async def test_slow_redis_is_left_alone(sink: TimescaleSink) -> None:
    """A Redis that accepts and says nothing costs 100 ms, once a second, and no outcome."""

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
    assert clock() - started < 0.1 <= first
    await claims.close()
    silent.close()
    await silent.wait_closed()


async def test_late_answer_is_not_taken_for_another(
    services: Services,
    claims: RedisClaims,
    sink: TimescaleSink,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A claim that was given up must not have its answer read by the next one."""
    monkeypatch.setattr("app.claims.LEFT_ALONE_S", 0.0)
    await commit(events("seen"), claims, sink)
    assert await claims.claim([event("seen").event_id]) == [Claim.SEEN]
    redis = Redis.from_url(services.redis_url)
    await redis.client_pause(300)
    assert await claims.claim([event("a").event_id, event("b").event_id]) == [Claim.HELD] * 2
    assert claims.is_bypassed
    async with asyncio.timeout(10):
        while await claims.claim([event("seen").event_id]) != [Claim.SEEN]:
            pass
    await redis.aclose()


async def test_caller_that_hangs_up_changes_nothing(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """A callback whose caller is gone is committed, and its retry is a duplicate."""
    gateway = await gateways.start()
    async with gateways.locked_events():
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head("GET", f"/ingest/adjust?{query()}"))
        while not len(gateway.gateway.buffer):
            await asyncio.sleep(0)
        writer.transport.abort()
    async with asyncio.timeout(10):
        while len(gateway.gateway.buffer):
            await asyncio.sleep(0.01)
    assert (await gateway.callback()).json in (WRITTEN, DUPLICATE)
    assert await stored(connection) == {"usr_1"}


async def test_received_is_the_sum(gateways: Gateways) -> None:
    """At every scrape, received is written + duplicate + dropped + failed."""
    gateway = await gateways.start()
    before = await gateway.metrics()
    for parameters in ({}, {}, {"event_token": "x"}, {"app_token": "x"}, {"user_id": "%00"}):
        assert (await gateway.callback(**parameters)).status == 200
    await gateways.execute("ALTER TABLE events RENAME TO elsewhere")
    assert (await gateway.callback(user_id="fails")).status == 500
    after = await gateway.metrics()

    def grown(name: str) -> float:
        return sum(
            value - before.get(series, 0)
            for series, value in after.items()
            if series.startswith(f"flokit_callbacks_{name}_total")
        )

    assert grown("received") == 6
    assert [grown(name) for name in ("written", "duplicate", "dropped", "failed")] == [2, 1, 2, 1]
