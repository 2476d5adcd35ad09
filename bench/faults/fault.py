"""The form of a fault, and the faults at a moment of a batch that several have in common."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from random import Random

from bench.testbed.environment import CLAIM_LEASE_S, COMMIT_TIMEOUT_S, Environment
from bench.testbed.gateway import Gateway
from bench.testbed.proxy import Moment

Fault = Callable[[Environment, Gateway, Random], Awaitable[None]]


async def kill_at(gateway: Gateway, moment: Moment) -> None:
    """Kill a gateway at a moment of its next batch, and start it again."""
    connection = await gateway.database.catch(moment)
    await asyncio.to_thread(gateway.kill)
    connection.cut()
    await gateway.start_ready()


async def freeze_at(gateway: Gateway, moment: Moment) -> None:
    """Stop a gateway at a moment of its next batch until its claims have ended, and resume it."""
    connection = await gateway.database.catch(moment)
    gateway.signal(signal.SIGSTOP)
    await asyncio.sleep(CLAIM_LEASE_S + 1)
    gateway.signal(signal.SIGCONT)
    connection.release()


async def blackhole_at(gateway: Gateway, moment: Moment, random: Random) -> None:
    """Drop everything between a gateway and the database from a moment of its next batch on."""
    await gateway.database.catch(moment)
    gateway.database.blackhole()
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(1, 2))
    gateway.database.restore()
