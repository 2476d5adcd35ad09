"""The runs that show a breach where faults alone do not."""

import asyncio
import signal
import time
from collections import defaultdict
from collections.abc import Sequence

from redis.asyncio import Redis

from bench.faults.oracle import judge
from bench.faults.verdict import Verdict
from bench.sabotage.sabotage import Sabotage
from bench.testbed.deliveries import MIX, EventGenerator
from bench.testbed.environment import CLAIM_LEASE_S, Environment
from bench.testbed.ledger import AnswerKind, Ledger
from bench.testbed.process import PATIENCE_S, POLL_S
from bench.testbed.vendor import Vendor
from bench.topologies.servers import WAITING, superuser_connection

SEED = 3
RATE = 400.0
RETRY_AFTER_S = (0.1, 0.2, 0.4, 0.8, 1.6)
TAKEN_MIN = 10
FAILED_PER_CLAIM = 4
SETTLED_WITHIN_S = 10.0
FROZEN_CALLBACKS, FROZEN_RETRIES = 150, 2
_SEEN_MS = 30 * 86_400_000
_DAY_MS = 86_400_000
# Another process takes each claim over, as after the end of its lease; returns each key, and the
# milliseconds that its lease had left.
_TAKE_OVER = """
local taken = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local owner = redis.call('GET', key)
  if owner ~= 'seen' and owner ~= 'another' then
    taken[#taken + 1] = {key, redis.call('PTTL', key)}
    redis.call('SET', key, 'another', 'PX', 600000)
  end
end
return taken
"""
_CANCEL_WAITS = f"SELECT pg_cancel_backend(pid) FROM ({WAITING}) AS waiting"  # noqa: S608 - constant


async def run_replaced(sabotage: Sabotage, environment: Environment) -> Verdict:
    """Put an empty backup back under the gateways: each event must be written again."""
    generator = EventGenerator(SEED, sabotage.all_shares, vendors=MIX)
    await _send(environment, generator, sabotage.callbacks)
    for gateway in environment.gateways:
        await asyncio.to_thread(gateway.stop)
    await environment.execute("TRUNCATE events, stable_events, dropped, quarantine_usage")
    await asyncio.to_thread(environment.servers.postgres.stop, signal.SIGINT)
    await asyncio.to_thread(environment.servers.postgres.start)
    await asyncio.gather(*(gateway.start_ready() for gateway in environment.gateways))
    ledger = await _send(environment, generator, sabotage.callbacks)
    return await _judge(environment, generator, ledger, sabotage.callbacks)


async def run_with_others_claims(
    sabotage: Sabotage, environment: Environment
) -> tuple[Verdict, list[str]]:
    """Take claims over while the table is locked; returns the broken rules of the claims too."""
    generator = EventGenerator(SEED, sabotage.all_shares, vendors=MIX)
    vendor = _vendor(environment, generator)
    try:
        await vendor.send(sabotage.callbacks // 2)
        await vendor.finish()
        async with environment.redis() as redis:
            broken = await _until_settled(redis)
            async with environment.locked("events"):
                sending = asyncio.create_task(vendor.send(sabotage.callbacks))
                taken = await _take_over(redis)
                await _until_failed(vendor.ledger, FAILED_PER_CLAIM * len(taken))
                # Nothing is committed meanwhile, and so no claim is settled.
                left = await redis.mget(*taken)
            await sending
            await vendor.finish()
            seen_ms = (await _keys(redis))[b"seen"]
    finally:
        await vendor.close()
    if released := len(left) - left.count(b"another"):
        broken.append(f"{released} claims of another process were released")
    if any(not 0 < left_ms <= CLAIM_LEASE_S * 1_000 for left_ms in taken.values()):
        broken.append("a claim has another lease than CLAIM_LEASE_S")
    if any(not _SEEN_MS - _DAY_MS < left_ms <= _SEEN_MS for left_ms in seen_ms):
        broken.append("an event is seen for another time than SEEN_WINDOW_D")
    verdict = await _judge(environment, generator, vendor.ledger, sabotage.callbacks)
    return verdict, broken


async def run_with_frozen_redis(
    sabotage: Sabotage, environment: Environment
) -> tuple[Verdict, list[str]]:
    """Freeze Redis for some callbacks: none may fail, not even once; returns those given up too."""
    generator = EventGenerator(SEED, sabotage.all_shares, vendors=MIX)
    vendor = _vendor(environment, generator, RETRY_AFTER_S[:FROZEN_RETRIES])
    redis = environment.servers.redis
    try:
        await vendor.send(sabotage.callbacks // 2)
        await vendor.finish()
        frozen_at = time.time()
        redis.pause()
        try:
            await vendor.send(sabotage.callbacks // 2 + FROZEN_CALLBACKS)
            await vendor.finish()
        finally:
            redis.resume()
        failed = {
            entry.event: f"{entry.kind.value}, while Redis was frozen"
            for entry in vendor.ledger.since(frozen_at)
            if entry.kind.is_failure
        }
        stuck = [f"callback {number} failed" for number in vendor.ledger.given_up]
        await vendor.send(sabotage.callbacks)
        await vendor.finish()
    finally:
        await vendor.close()
    verdict = await _judge(environment, generator, vendor.ledger, sabotage.callbacks)
    verdict.failed |= failed
    return verdict, stuck


async def run_promoted(sabotage: Sabotage, environment: Environment) -> Verdict:
    """Promote a standby that lacks the rows of commits whose wait for it was cancelled.

    Without the standby all commits wait, and their waits are cancelled. The retries of their
    events find rows that no standby has.
    """
    generator = EventGenerator(SEED, sabotage.all_shares, vendors=MIX)
    vendor = _vendor(environment, generator)
    pair = environment.pair
    try:
        await vendor.send(sabotage.callbacks // 3)
        await vendor.finish()
        # Killed, not frozen: the network would deliver the rows to a frozen one later.
        await asyncio.to_thread(pair.standby.kill)
        async with asyncio.TaskGroup() as tasks:
            cancelling = tasks.create_task(_cancel_waits(environment))
            await vendor.send(sabotage.callbacks * 2 // 3)
            await vendor.finish()
            cancelling.cancel()
        await asyncio.to_thread(pair.primary.kill)
        await asyncio.to_thread(pair.standby.start)
        await pair.promote()
        await vendor.send(sabotage.callbacks)
        await vendor.finish()
    finally:
        await vendor.close()
    return await _judge(environment, generator, vendor.ledger, sabotage.callbacks)


async def _cancel_waits(environment: Environment) -> None:
    """Cancel each wait of a commit for the standby, until cancelled."""
    async with superuser_connection(environment.pair.primary) as connection:
        while True:
            await connection.fetch(_CANCEL_WAITS)
            await asyncio.sleep(POLL_S)


async def _take_over(redis: Redis) -> dict[bytes, int]:
    """Return the claims that were taken over, with the milliseconds of their leases."""
    taken: dict[bytes, int] = {}
    async with asyncio.timeout(PATIENCE_S):
        while len(taken) < TAKEN_MIN:
            taken.update(await redis.eval(_TAKE_OVER, 0))
            await asyncio.sleep(POLL_S)
    return taken


async def _until_failed(ledger: Ledger, answers: int) -> None:
    """Return after so many further answers of a failure, each of which follows a release."""
    answers += ledger.tally()[AnswerKind.ERROR]
    async with asyncio.timeout(PATIENCE_S):
        while ledger.tally()[AnswerKind.ERROR] < answers:  # noqa: ASYNC110 - polls a ledger
            await asyncio.sleep(POLL_S)


async def _until_settled(redis: Redis) -> list[str]:
    """Return once there are no claims, as all callbacks are answered; or the broken rule."""
    deadline = asyncio.get_running_loop().time() + SETTLED_WITHIN_S
    while (keys := await _keys(redis)).keys() != {b"seen"}:
        if asyncio.get_running_loop().time() > deadline:
            return ["events are not settled" if b"seen" in keys else "no event is settled"]
        await asyncio.sleep(POLL_S)
    return []


async def _keys(redis: Redis) -> defaultdict[bytes, list[int]]:
    """Return the milliseconds that each key has left, by its value."""
    keys: defaultdict[bytes, list[int]] = defaultdict(list)
    async for key in redis.scan_iter(count=1_000):
        owner, left_ms = await redis.get(key), await redis.pttl(key)
        if isinstance(owner, bytes):
            keys[owner].append(left_ms)
    return keys


def _vendor(
    environment: Environment,
    generator: EventGenerator,
    retry_after_s: Sequence[float] = RETRY_AFTER_S,
) -> Vendor:
    ports = [gateway.port for gateway in environment.gateways]
    return Vendor(generator, ports, RATE, retry_after_s=retry_after_s)


async def _send(environment: Environment, generator: EventGenerator, callbacks: int) -> Ledger:
    vendor = _vendor(environment, generator)
    try:
        await vendor.send(callbacks)
        await vendor.finish()
    finally:
        await vendor.close()
    return vendor.ledger


async def _judge(
    environment: Environment, generator: EventGenerator, ledger: Ledger, callbacks: int
) -> Verdict:
    async with environment.connected() as connection:
        return await judge(connection, generator, ledger, callbacks)
