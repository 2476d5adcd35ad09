"""The claim store on a Redis Cluster of six: batches in parts, dead nodes, slots that move."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.crc import key_slot

from app.claims.redis import CLUSTER_PARTS, RedisClaims, _hash_tags
from app.dev.processes import Server
from app.event import Claim
from app.telemetry.metrics import CLAIMS_BYPASSED
from bench.testbed.callbacks import SECRET, WORKSPACES
from bench.testbed.ledger import AnswerKind
from bench.testbed.process import PATIENCE_S
from tests.adversity.test_rolling import assert_exactly_once, calling
from tests.gateways import Process
from tests.redis_topologies import PASSWORD, SLOTS, Cluster, asking

MAKE = Callable[..., RedisClaims]
BATCH = 200
BYPASSED = "flokit_claims_bypassed_total"
BATCHES = "flokit_batch_events_count"


@pytest.fixture
async def make(redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MAKE]:
    """Make the claims of a process on data of the test's own."""
    monkeypatch.setattr("app.claims.servers.CLAIM_TIMEOUT_S", 0.5)
    stores = []
    name = secrets.token_hex(6)

    def make(url: str = redis_cluster.url, generation: str = name) -> RedisClaims:
        claims = RedisClaims(url, generation=lambda: generation, lease_s=60, seen_window_d=1)
        stores.append(claims)
        return claims

    yield make
    for claims in stores:
        await claims.close()
    await redis_cluster.until_whole()


def ids(number: int = BATCH) -> list[bytes]:
    """Events that nobody has ever claimed, for all parts in turn."""
    return [bytes([n % 256]) + secrets.token_bytes(15) for n in range(number)]


def part_of(event_id: bytes) -> int:
    """Which part of the claims an event belongs to."""
    return event_id[0] % CLUSTER_PARTS


def slots() -> list[int]:
    """The slot of each part."""
    return [key_slot(tag) for tag in _hash_tags(CLUSTER_PARTS)]


async def until_all_answer(first: RedisClaims, second: RedisClaims) -> None:
    """Return when what one of them claims now is known to the other, whatever part it is in."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            events = ids()
            await first.claim(events)
            if await second.claim(events) == [Claim.BUSY] * len(events):
                return
            await asyncio.sleep(0.05)


def test_parts_lie_unevenly() -> None:
    """Of any number of primaries with equal ranges each has its share of the parts."""
    assert [slot * CLUSTER_PARTS // SLOTS for slot in slots()] == list(range(CLUSTER_PARTS))


async def test_batch_is_split_by_slot(make: MAKE, redis_cluster: Cluster) -> None:
    """A batch goes to all primaries, and its answers come back in its own order."""
    first, second = make(), make()
    events = ids()
    claimed = events[::3]
    assert await first.claim(claimed) == [Claim.HELD] * len(claimed)
    await first.settle(events[::6])
    assert await first.claim([]) == []
    expected = [
        Claim.SEEN if n % 6 == 0 else Claim.BUSY if n % 3 == 0 else Claim.HELD for n in range(BATCH)
    ]
    assert await second.claim(events) == expected
    await first.release(claimed)
    await second.release(events)
    expected = [Claim.SEEN if n % 6 == 0 else Claim.HELD for n in range(BATCH)]
    assert await make().claim(events) == expected
    for primary in await redis_cluster.primaries():
        async with asking(primary) as redis:
            assert await redis.dbsize() > BATCH / 6


async def test_braces_in_a_key(make: MAKE) -> None:
    """Whatever stands in the name of the data and in an event's ID, its part says its slot."""
    events = [bytes([n]) + b"}{other}{}{" + secrets.token_bytes(4) for n in range(32)]
    first, second = make(generation="{a}{b}"), make(generation="{a}{b}")
    before = CLAIMS_BYPASSED._value.get()
    assert await first.claim(events) == [Claim.HELD] * len(events)
    assert await second.claim(events) == [Claim.BUSY] * len(events)
    assert CLAIMS_BYPASSED._value.get() == before


async def test_frozen_nodes_share_one_time_out(make: MAKE, redis_cluster: Cluster) -> None:
    """Two frozen nodes cost no more than one; the third is listened to, they are left alone."""
    first, second = make(), make()
    await until_all_answer(first, second)
    *frozen, well = await redis_cluster.primaries()
    events = ids()
    await first.claim(events)
    clock = asyncio.get_running_loop().time
    try:
        for node in frozen:
            node.pause()
        started = clock()
        answers = await second.claim(events)
        took = clock() - started
        started = clock()
        again = await second.claim(events)
        took_again = clock() - started
    finally:
        for node in frozen:
            node.resume()
    assert 0.5 <= took < 0.9
    assert took_again < 0.4
    owners = [await redis_cluster.owner(slot) for slot in slots()]
    expected = [
        Claim.BUSY if owners[part_of(event_id)] is well else Claim.HELD for event_id in events
    ]
    assert answers == again == expected
    assert second.is_bypassed
    await until_all_answer(first, second)
    assert not second.is_bypassed


async def test_nobody_is_there(make: MAKE) -> None:
    """Without a single node all is held, at once, and nobody waits for the next batch."""
    claims = make("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    clock = asyncio.get_running_loop().time
    started = clock()
    for _ in range(10):
        assert await claims.claim(ids(3)) == [Claim.HELD] * 3
    assert clock() - started < 0.5
    assert claims.is_bypassed


async def test_slot_moves(make: MAKE, redis_cluster: Cluster) -> None:
    """While a slot moves its part is held, the others are answered; then it is found again."""
    first, second = make(), make()
    await until_all_answer(first, second)
    slot = slots()[0]
    source = await redis_cluster.owner(slot)
    target = next(node for node in await redis_cluster.primaries() if node is not source)
    names = [await execute(node, "CLUSTER", "MYID") for node in (source, target)]
    await execute(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
    await execute(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
    before = CLAIMS_BYPASSED._value.get()
    events = ids()
    await first.claim(events)
    expected = [Claim.BUSY if part_of(event_id) else Claim.HELD for event_id in events]
    assert await second.claim(events) == expected
    assert CLAIMS_BYPASSED._value.get() == before + 2
    assert not second.is_bypassed
    while keys := await execute(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
        await execute(
            source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000,
            "AUTH", PASSWORD, "KEYS", *keys,
        )  # fmt: skip
    for node in (target, source):
        await execute(node, "CLUSTER", "SETSLOT", slot, "NODE", names[1])
    await until_all_answer(first, second)
    assert await redis_cluster.owner(slot) is target


async def execute(node: Server, *words: Any) -> Any:
    """Run one command on a node."""
    async with asking(node) as redis:
        return await redis.execute_command(*words)


async def test_slot_is_served_by_nobody(make: MAKE, redis_cluster: Cluster) -> None:
    """A slot without a primary costs its part, until it has one again."""
    first, second = make(), make()
    await until_all_answer(first, second)
    slot = slots()[3]
    owner = await redis_cluster.owner(slot)
    await execute(owner, "CLUSTER", "DELSLOTS", slot)
    events = ids()
    assert await first.claim(events) == [Claim.HELD] * BATCH
    assert first.is_bypassed
    await execute(owner, "CLUSTER", "ADDSLOTS", slot)
    await until_all_answer(first, second)
    assert not first.is_bypassed


async def test_settled_while_a_node_is_away(make: MAKE, redis_cluster: Cluster) -> None:
    """What was committed while a node was away is told to it when it is back."""
    first, second = make(), make()
    await until_all_answer(first, second)
    events = ids()
    node = await redis_cluster.owner(slots()[0])
    try:
        node.pause()
        await first.claim(events)
        await first.settle(events)
        await first.claim(ids())
    finally:
        node.resume()
    async with asyncio.timeout(PATIENCE_S):
        while await second.claim(events) != [Claim.SEEN] * BATCH:
            await asyncio.sleep(0.05)


@pytest.fixture
async def processes(
    redis_cluster: Cluster, database_url: str, tmp_path: Path
) -> AsyncIterator[Sequence[Process]]:
    """Two gateways on one database and the cluster."""
    with ExitStack() as stack:
        started = []
        for name in ("one", "two"):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "workspaces.toml").write_text(WORKSPACES)
            secret = {"ADJUST_CALLBACK_SECRET": SECRET}
            process = Process(database_url, redis_cluster.url, folder, **secret)
            started.append(stack.enter_context(process))
        for process in started:
            await asyncio.to_thread(process.wait_until_ready)
        yield started


async def until_claims_work(processes: Sequence[Process]) -> None:
    """Return when some batches in turn, on each of the gateways, have had all their answers."""
    for process in processes:
        async with asyncio.timeout(PATIENCE_S):
            before = await process.metrics()
            while True:
                now = await process.metrics()
                if now[BYPASSED] > before[BYPASSED]:
                    before = now
                if now[BATCHES] > before[BATCHES] + 50:
                    break
                await asyncio.sleep(0.05)


async def test_primary_killed_under_load(
    processes: Sequence[Process], redis_cluster: Cluster, connection: asyncpg.Connection
) -> None:
    """A killed primary fails no callback, loses and doubles none; its replica takes its part."""
    slot = slots()[0]
    async with calling(*(process.port for process in processes)) as vendor:
        await until_claims_work(processes)
        quiet = [(await process.metrics())[BYPASSED] for process in processes]
        killed = await redis_cluster.owner(slot)
        killed.kill()
        assert await redis_cluster.owner(slot) is not killed
        await until_claims_work(processes)
        for process, number in zip(processes, quiet, strict=True):
            assert (await process.metrics())[BYPASSED] > number
        killed.start()
        await redis_cluster.until_whole()
        await until_claims_work(processes)
    assert vendor.ledger.tally().keys() == {
        AnswerKind.WRITTEN,
        AnswerKind.DUPLICATE,
        AnswerKind.DROPPED,
    }
    await assert_exactly_once(vendor, connection)
