"""One row for each event: for any claims, callers and batches."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import asyncpg
import pytest

from app.claims import Claim, Claims
from app.claims.redis import RedisClaims
from app.event import Outcome
from bench.testbed.client import head
from sinks.timescale.sink import TimescaleSink
from tests.events import commit, commit_contested, event, events, stored
from tests.gateways import Gateways, Running, Services, make_claims, query, workspaces_toml
from tests.services.test_vectors import receipt, send
from tests.vectors import VECTORS, app_token

DUPLICATE = {"received": 1, "written": 0, "duplicate": 1, "dropped": 0}


class AlwaysHeld:
    """No claim store at all: everything is ours to write."""

    is_bypassed = False

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        return [Claim.HELD] * len(event_ids)

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        pass

    async def release(self, event_ids: Sequence[bytes]) -> None:
        pass

    async def close(self) -> None:
        pass


class AlwaysBusy(AlwaysHeld):
    """Every event is contested."""

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        return [Claim.CONTESTED] * len(event_ids)


any_store = pytest.mark.parametrize(
    "store", [None, AlwaysHeld(), AlwaysBusy()], ids=["redis", "held", "busy"]
)


@any_store
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


@any_store
async def test_simultaneous_callbacks_make_one_row(
    gateways: Gateways, connection: asyncpg.Connection, store: Claims | None
) -> None:
    """Of many equal callbacks at once, to two gateways, one is written, the rest are duplicates."""
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


async def test_repeats_inside_a_batch_are_duplicates(
    claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """Repeats fold into one write; the first is written, the others are duplicates."""
    outcomes = await commit(events("a", "b", "a", "a"), claims, sink)
    assert [o for o in outcomes if isinstance(o, Outcome)] == [
        Outcome.WRITTEN, Outcome.WRITTEN, Outcome.DUPLICATE, Outcome.DUPLICATE,
    ]  # fmt: skip
    assert await stored(connection) == {"a", "b"}


async def test_repeats_share_a_failure(
    claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """A repeat is no duplicate when the write that it was folded into failed."""
    await connection.execute("ALTER TABLE events RENAME TO elsewhere")
    outcomes = await commit(events("a", "a"), claims, sink)
    assert outcomes == [Outcome.FAILED, Outcome.FAILED]
    await connection.execute("ALTER TABLE elsewhere RENAME TO events")
    outcomes = await commit(events("a", "a"), claims, sink)
    assert outcomes == [Outcome.WRITTEN, Outcome.DUPLICATE]


async def test_contested_event_does_not_delay_its_neighbours(
    services: Services, claims: RedisClaims, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """A contested event is decided alone, after its neighbours have been answered."""
    other = make_claims(services, sink)
    await other.claim([event("a").event_id])
    assert await commit(events("a", "b"), claims, sink) == [Outcome.CONTESTED, Outcome.WRITTEN]
    assert await commit_contested(event("a"), claims, sink) is Outcome.WRITTEN
    # The other was slow, not dead: it finds the row.
    assert await commit_contested(event("a"), other, sink) is Outcome.DUPLICATE
    assert await stored(connection) == {"a", "b"}
    await other.close()


async def hang_up(gateways: Gateways, gateway: Running) -> None:
    """Send a callback and go away while it is in the buffer; return when it has left that."""
    async with gateways.held_writes():
        _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(head("GET", f"/ingest/adjust?{query()}"))
        while not len(gateway.gateway.buffer):
            await asyncio.sleep(0)
        writer.transport.abort()
    async with asyncio.timeout(10):
        while len(gateway.gateway.buffer):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("store", [None, AlwaysBusy()], ids=["in a batch", "alone"])
async def test_caller_that_hangs_up_changes_nothing(
    gateways: Gateways, connection: asyncpg.Connection, store: Claims | None
) -> None:
    """A callback of a caller that is gone is committed, alone or not; its retry is a duplicate."""
    gateway = await gateways.start(claims=store)
    await hang_up(gateways, gateway)
    assert await stored(connection) == {"usr_1"}
    assert (await gateway.callback()).json == DUPLICATE


async def test_poison_is_dropped(gateways: Gateways, connection: asyncpg.Connection) -> None:
    """An event that the database refuses for good is answered, and only that one, among many."""
    await connection.execute("ALTER TABLE events ADD CONSTRAINT c CHECK (user_id <> 'poison')")
    gateway = await gateways.start()
    users = [f"u{number}" for number in range(20)]
    users.insert(7, "poison")
    answers = await asyncio.gather(*(gateway.callback(user_id=user) for user in users))
    assert [answer.json for answer in answers] == [
        receipt("dropped" if user == "poison" else "written") for user in users
    ]
    assert await stored(connection) == set(users) - {"poison"}


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
