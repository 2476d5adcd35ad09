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

from app.claims import Claim
from app.claims.cluster import CLUSTER_PARTS, hash_tags
from app.claims.redis import RedisClaims
from app.dev.processes import Server
from app.telemetry.metrics import CLAIMS_BYPASSED
from bench.testbed.callbacks import SECRET, WORKSPACES
from bench.testbed.process import PATIENCE_S
from tests.adversity.test_rolling import assert_all_final, assert_exactly_once, calling
from tests.gateways import PATIENT, Process
from tests.redis_topologies import PASSWORD, SLOTS, Cluster, client_of

MAKE = Callable[..., RedisClaims]
BATCH = 200
TIMEOUT_S = 1.5
BYPASSED = "flokit_claims_bypassed_total"
BATCHES = "flokit_batch_events_count"


@pytest.fixture
async def make(redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MAKE]:
    """Makes the claims of a process, on a generation of the test's own."""
    monkeypatch.setattr("app.claims.time_limit.CLAIM_TIMEOUT_S", 0.5)
    stores = []
    name = secrets.token_hex(6)

    def make(url: str = redis_cluster.url, generation: str = name) -> RedisClaims:
        claims = RedisClaims(url, generation=lambda: generation, lease_s=60, seen_window_d=1)
        stores.append(claims)
        return claims

    yield make
    for claims in stores:
        await claims.close()


def ids(number: int = BATCH) -> list[bytes]:
    """IDs of new events, for all parts in turn."""
    return [bytes([n % 256]) + secrets.token_bytes(15) for n in range(number)]


def part_of(event_id: bytes) -> int:
    """The part of the claims that an event belongs to."""
    return event_id[0] % CLUSTER_PARTS


def slots() -> list[int]:
    """The slot of each part."""
    return [key_slot(tag) for tag in hash_tags()]


async def until_all_answer(first: RedisClaims, second: RedisClaims) -> None:
    """Return when the claims of one are contested for the other, in every part."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            events = ids()
            await first.claim(events)
            if await second.claim(events) == [Claim.CONTESTED] * len(events):
                return
            await asyncio.sleep(0.05)


def test_parts_are_spread_evenly() -> None:
    """Primaries with equal ranges of slots have equal shares of the parts."""
    assert [slot * CLUSTER_PARTS // SLOTS for slot in slots()] == list(range(CLUSTER_PARTS))


async def test_batch_is_split_by_slot(make: MAKE, redis_cluster: Cluster) -> None:
    """A batch goes to all primaries, and its claims come back in its own order."""
    first, second = make(), make()
    events = ids()
    claimed = events[::3]
    assert await first.claim(claimed) == [Claim.HELD] * len(claimed)
    await first.settle(events[::6])
    assert await first.claim([]) == []
    expected = [
        Claim.SEEN if n % 6 == 0 else Claim.CONTESTED if n % 3 == 0 else Claim.HELD
        for n in range(BATCH)
    ]
    assert await second.claim(events) == expected
    await first.release(claimed)
    await second.release(events)
    expected = [Claim.SEEN if n % 6 == 0 else Claim.HELD for n in range(BATCH)]
    assert await make().claim(events) == expected
    for primary in await redis_cluster.primaries():
        async with client_of(primary) as redis:
            assert await redis.dbsize() > BATCH / 6


async def test_braces_in_a_key_do_not_move_it(make: MAKE) -> None:
    """The hash tag alone decides the slot, also with braces in the generation and the event ID."""
    events = [bytes([n]) + b"}{other}{}{" + secrets.token_bytes(4) for n in range(32)]
    first, second = make(generation="{a}{b}"), make(generation="{a}{b}")
    before = CLAIMS_BYPASSED._value.get()
    assert await first.claim(events) == [Claim.HELD] * len(events)
    assert await second.claim(events) == [Claim.CONTESTED] * len(events)
    assert CLAIMS_BYPASSED._value.get() == before


async def test_frozen_nodes_share_one_time_out(
    make: MAKE, redis_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two frozen nodes cost one time limit, then none; the answer of the third counts."""
    # Far longer than a pause of a busy machine, and counted in one piece, which is never late.
    for name in ("CLAIM_TIMEOUT_S", "TICK_S", "LATE_S"):
        monkeypatch.setattr(f"app.claims.time_limit.{name}", TIMEOUT_S)
    monkeypatch.setattr("app.claims.primaries.BACKOFF_S", 2 * TIMEOUT_S)
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
    assert TIMEOUT_S <= took < 2 * TIMEOUT_S
    assert took_again < TIMEOUT_S
    owners = [await redis_cluster.owner(slot) for slot in slots()]
    expected = [
        Claim.CONTESTED if owners[part_of(event_id)] is well else Claim.HELD for event_id in events
    ]
    assert answers == again == expected
    assert second.is_bypassed
    await until_all_answer(first, second)
    assert not second.is_bypassed


async def test_unreachable_cluster_costs_no_time(
    make: MAKE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a single node, every event is held at once."""
    for name in ("time_limit.CLAIM_TIMEOUT_S", "redis.DISCOVERY_TIMEOUT_S"):
        monkeypatch.setattr(f"app.claims.{name}", 2 * PATIENCE_S)
    claims = make("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    async with asyncio.timeout(PATIENCE_S):  # shorter than each of them
        for _ in range(10):
            assert await claims.claim(ids(3)) == [Claim.HELD] * 3
    assert claims.is_bypassed


async def test_moving_slot_costs_its_own_part(make: MAKE, redis_cluster: Cluster) -> None:
    """While a slot moves, only the events of its part are held without an answer."""
    first, second = make(), make()
    await until_all_answer(first, second)
    slot = slots()[0]
    source = await redis_cluster.owner(slot)
    target = next(node for node in await redis_cluster.primaries() if node is not source)
    names = [await execute(node, "CLUSTER", "MYID") for node in (source, target)]
    try:
        await execute(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", names[0])
        await execute(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", names[1])
        before = CLAIMS_BYPASSED._value.get()
        events = ids()
        await first.claim(events)
        expected = [Claim.CONTESTED if part_of(event_id) else Claim.HELD for event_id in events]
        assert await second.claim(events) == expected
        assert CLAIMS_BYPASSED._value.get() == before + 2
        assert not second.is_bypassed
    finally:
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
    async with client_of(node) as redis:
        return await redis.execute_command(*words)


async def test_slot_without_a_primary_costs_a_backoff(make: MAKE, redis_cluster: Cluster) -> None:
    """A slot without a primary bypasses the claims until it has one again."""
    first, second = make(), make()
    await until_all_answer(first, second)
    slot = slots()[3]
    owner = await redis_cluster.owner(slot)
    await execute(owner, "CLUSTER", "DELSLOTS", slot)
    try:
        assert await first.claim(ids()) == [Claim.HELD] * BATCH
        assert first.is_bypassed
    finally:
        await execute(owner, "CLUSTER", "ADDSLOTS", slot)
    await until_all_answer(first, second)
    assert not first.is_bypassed


async def test_commits_are_settled_when_a_node_is_back(make: MAKE, redis_cluster: Cluster) -> None:
    """Events committed while a node is frozen are settled on it afterwards."""
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
            settings = PATIENT | {"ADJUST_CALLBACK_SECRET": SECRET}
            process = Process(database_url, redis_cluster.url, folder, **settings)
            started.append(stack.enter_context(process))
        for process in started:
            await asyncio.to_thread(process.wait_until_ready)
        yield started


async def until_claims_work(processes: Sequence[Process]) -> None:
    """Return when fifty batches in turn, on each gateway, had all their answers."""
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


async def test_killed_primary_fails_no_callback(
    processes: Sequence[Process], redis_cluster: Cluster, connection: asyncpg.Connection
) -> None:
    """No callback fails, is lost or doubled; the replica takes over."""
    slot = slots()[0]
    async with calling(*(process.port for process in processes)) as vendor:
        await until_claims_work(processes)
        quiet = [(await process.metrics())[BYPASSED] for process in processes]
        killed = await redis_cluster.owner(slot)
        await redis_cluster.hasten()
        try:
            killed.kill()
            assert await redis_cluster.owner(slot) is not killed
            await until_claims_work(processes)
            for process, number in zip(processes, quiet, strict=True):
                assert (await process.metrics())[BYPASSED] > number
        finally:
            await redis_cluster.mend()
        await until_claims_work(processes)
    assert_all_final(vendor)
    await assert_exactly_once(vendor, connection)
