"""The runs that show a breach where faults alone do not."""

import asyncio
import signal
import time
from collections.abc import Sequence

from bench.faults.oracle import judge
from bench.faults.verdict import Verdict
from bench.sabotage.sabotage import Sabotage
from bench.testbed.deliveries import MIX, EventGenerator
from bench.testbed.environment import Environment
from bench.testbed.ledger import Ledger
from bench.testbed.process import POLL_S
from bench.testbed.threads import in_thread
from bench.testbed.vendor import Vendor
from bench.topologies.servers import WAITING, superuser_connection

SEED = 3
RATE = 400.0
RETRY_AFTER_S = (0.1, 0.2, 0.4, 0.8, 1.6)
FROZEN_CALLBACKS, FROZEN_RETRIES = 150, 2
_CANCEL_WAITS = f"SELECT pg_cancel_backend(pid) FROM ({WAITING}) AS waiting"  # noqa: S608 - constant


async def run_replaced(sabotage: Sabotage, environment: Environment) -> Verdict:
    """Put an empty backup back under the gateways: each event must be written again."""
    generator = EventGenerator(SEED, sabotage.all_shares, vendors=MIX)
    await _send(environment, generator, sabotage.callbacks)
    for gateway in environment.gateways:
        await in_thread(gateway.stop)
    await environment.execute("TRUNCATE events, stable_events, dropped, quarantine_usage")
    await in_thread(environment.servers.postgres.stop, signal.SIGINT)
    await in_thread(environment.servers.postgres.start)
    await asyncio.gather(*(gateway.start_ready() for gateway in environment.gateways))
    ledger = await _send(environment, generator, sabotage.callbacks)
    return await judge_run(environment, generator, ledger, sabotage.callbacks)


async def run_with_frozen_redis(
    sabotage: Sabotage, environment: Environment
) -> tuple[Verdict, list[str]]:
    """Freeze Redis for some callbacks: none may fail, not even once; returns those given up too."""
    generator = EventGenerator(SEED, sabotage.all_shares, vendors=MIX)
    vendor = vendor_of(environment, generator, RETRY_AFTER_S[:FROZEN_RETRIES])
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
    verdict = await judge_run(environment, generator, vendor.ledger, sabotage.callbacks)
    verdict.failed |= failed
    return verdict, stuck


async def run_promoted(sabotage: Sabotage, environment: Environment) -> Verdict:
    """Promote a standby that lacks the rows of commits whose wait for it was cancelled.

    Without the standby all commits wait, and their waits are cancelled. The retries of their
    events find rows that no standby has.
    """
    generator = EventGenerator(SEED, sabotage.all_shares, vendors=MIX)
    vendor = vendor_of(environment, generator)
    pair = environment.pair
    try:
        await vendor.send(sabotage.callbacks // 3)
        await vendor.finish()
        # Killed, not frozen: the network would deliver the rows to a frozen one later.
        await in_thread(pair.standby.kill)
        async with asyncio.TaskGroup() as tasks:
            cancelling = tasks.create_task(_cancel_waits(environment))
            await vendor.send(sabotage.callbacks * 2 // 3)
            await vendor.finish()
            cancelling.cancel()
        await in_thread(pair.primary.kill)
        await in_thread(pair.standby.start)
        await pair.promote()
        await vendor.send(sabotage.callbacks)
        await vendor.finish()
    finally:
        await vendor.close()
    return await judge_run(environment, generator, vendor.ledger, sabotage.callbacks)


async def _cancel_waits(environment: Environment) -> None:
    """Cancel each wait of a commit for the standby, until cancelled."""
    async with superuser_connection(environment.pair.primary) as connection:
        while True:
            await connection.fetch(_CANCEL_WAITS)
            await asyncio.sleep(POLL_S)


def vendor_of(
    environment: Environment,
    generator: EventGenerator,
    retry_after_s: Sequence[float] = RETRY_AFTER_S,
) -> Vendor:
    """Return a vendor that sends to all gateways of an environment."""
    ports = [gateway.port for gateway in environment.gateways]
    return Vendor(generator, ports, RATE, retry_after_s=retry_after_s)


async def _send(environment: Environment, generator: EventGenerator, callbacks: int) -> Ledger:
    vendor = vendor_of(environment, generator)
    try:
        await vendor.send(callbacks)
        await vendor.finish()
    finally:
        await vendor.close()
    return vendor.ledger


async def judge_run(
    environment: Environment, generator: EventGenerator, ledger: Ledger, callbacks: int
) -> Verdict:
    """Return the verdict of the oracle on the first so many callbacks."""
    async with environment.connected() as connection:
        return await judge(connection, generator, ledger, callbacks)
