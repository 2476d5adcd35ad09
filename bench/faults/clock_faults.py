"""Wrong clocks of a gateway, and wrong dates of callbacks."""

import asyncio
import time
from random import Random

from bench.faults.fault import Fault, restart
from bench.testbed.chronicle import Shift
from bench.testbed.clocks import Clock, find_libfaketime, until_ahead
from bench.testbed.environment import Environment
from bench.testbed.gateway import Gateway

AHEAD_S = 25 * 3_600
# The callbacks of these faults occur now, and as long ago as is accepted: see `Schedule`.


async def gateway_clock_ahead(environment: Environment, gateway: Gateway, random: Random) -> None:
    """The clock of a gateway jumps 25 hours ahead, and back after some seconds."""
    await _jump(environment, gateway, AHEAD_S, random)


async def gateway_clock_behind(environment: Environment, gateway: Gateway, random: Random) -> None:
    """The clock of a gateway jumps 25 hours back, and is right after some seconds."""
    await _jump(environment, gateway, -AHEAD_S, random)


async def wrong_dates(_: Environment, __: Gateway, random: Random) -> None:
    """Many callbacks have dates without a chunk, for some seconds."""
    await asyncio.sleep(random.uniform(2, 4))  # by `EventGenerator.periods`


async def _jump(environment: Environment, gateway: Gateway, ahead_s: int, random: Random) -> None:
    library = await asyncio.to_thread(find_libfaketime)
    clock = Clock(library, environment.folder / f"clock-{gateway.port}")
    begun = time.time()
    await restart(gateway, **clock.environ)
    await asyncio.sleep(random.uniform(0.5, 1))
    since = time.time()
    clock.set(ahead_s)
    await until_ahead(gateway.port, ahead_s)
    await asyncio.sleep(random.uniform(2, 4))
    clock.set(0)
    until = time.time()
    await until_ahead(gateway.port, 0)
    await asyncio.sleep(random.uniform(0.2, 0.5))
    await restart(gateway)
    environment.chronicle.shifts += (Shift(since, until, ahead_s), Shift(begun, time.time(), 0))


CLOCKS: tuple[Fault, ...] = (gateway_clock_ahead, gateway_clock_behind)
FAULTS: tuple[Fault, ...] = (*CLOCKS, wrong_dates)
