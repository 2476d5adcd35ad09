"""The standby is promoted: after a fault of the primary, on purpose, or beside a living primary."""

import asyncio
from random import Random

from bench.faults.fault import Fault
from bench.testbed.environment import COMMIT_TIMEOUT_S, Environment
from bench.testbed.gateway import Gateway
from bench.testbed.proxy import Moment
from bench.testbed.threads import in_thread
from bench.topologies.servers import until_primary, until_waiting


async def primary_killed_and_rewound(environment: Environment, _: Gateway, random: Random) -> None:
    """The primary is killed, the standby promoted; the old primary follows after pg_rewind."""
    pair = environment.pair
    await in_thread(pair.primary.kill)
    await asyncio.sleep(random.uniform(0, 0.5))
    await pair.promote()
    await asyncio.sleep(random.uniform(0.5, 1.5))
    await pair.rewind()


async def primary_killed_for_good(environment: Environment, _: Gateway, random: Random) -> None:
    """The primary and its disk are lost, the standby promoted; it gets a new standby later."""
    pair = environment.pair
    await in_thread(pair.primary.kill)
    await asyncio.sleep(random.uniform(0, 0.5))
    await pair.promote()
    await asyncio.sleep(random.uniform(0.5, 1.5))
    await pair.rejoin()


async def primary_killed_before_the_answer(
    environment: Environment, gateway: Gateway, random: Random
) -> None:
    """The primary is killed after a commit, before its answer arrives, and the standby promoted."""
    pair = environment.pair
    connection = await gateway.way_to(pair.primary).catch(Moment.AFTER_COMMIT)
    await in_thread(pair.primary.kill)
    connection.cut()
    await pair.promote()
    await asyncio.sleep(random.uniform(0.5, 1))
    await pair.rewind()


async def primary_frozen_and_replaced(environment: Environment, _: Gateway, random: Random) -> None:
    """The primary freezes, with its connections open, and the standby is promoted."""
    pair = environment.pair
    pair.primary.pause()
    await asyncio.sleep(random.uniform(0, 0.5))
    await pair.promote()
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0, 1))
    await pair.rejoin()


async def promoted_there_and_back(environment: Environment, _: Gateway, random: Random) -> None:
    """The primary is killed and replaced twice in a row: the first one is the primary again."""
    pair = environment.pair
    for _turn in range(2):
        await in_thread(pair.primary.kill)
        await pair.promote()
        await pair.rewind()
        await asyncio.sleep(random.uniform(0, 0.5))


async def switched_over(environment: Environment, _: Gateway, random: Random) -> None:
    """The primary is shut down cleanly, the standby promoted; the old primary follows as it is."""
    pair = environment.pair
    await in_thread(pair.primary.stop)
    await pair.promote()
    await asyncio.sleep(random.uniform(0, 0.5))
    await pair.follow()


async def split_brain(environment: Environment, _: Gateway, random: Random) -> None:
    """The standby is promoted while the old primary lives on, for some seconds."""
    pair = environment.pair
    await pair.promote()
    await asyncio.sleep(random.uniform(2, 4))
    await until_primary(pair.standby)  # it has lived on
    await pair.rewind()  # which kills the old primary first


async def split_brain_between_gateways(
    environment: Environment, gateway: Gateway, random: Random
) -> None:
    """A split brain: one gateway reaches the old primary only, the others the new one only."""
    pair = environment.pair
    ways = [
        other.way_to(pair.standby if other is gateway else pair.primary)
        for other in environment.gateways
    ]
    for way in ways:
        way.blackhole()
    await pair.promote()
    await until_waiting(pair.standby)  # a commit of this gateway, at the old primary
    await asyncio.sleep(random.uniform(2, 4))
    await in_thread(pair.standby.kill)
    for way in ways:
        way.restore()
    await pair.rewind()


FAULTS: tuple[Fault, ...] = (
    primary_killed_and_rewound,
    primary_killed_for_good,
    primary_killed_before_the_answer,
    primary_frozen_and_replaced,
    promoted_there_and_back,
    switched_over,
    split_brain,
    split_brain_between_gateways,
)
