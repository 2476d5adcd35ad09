"""The faults of quarantine: of the drops on their way, and of their table."""

import asyncio
from random import Random

from bench.faults.fault import Fault, freeze_at, kill_at
from bench.testbed.environment import COMMIT_TIMEOUT_S, Environment
from bench.testbed.gateway import Gateway
from bench.testbed.proxy import Moment


async def gateway_killed_between_drop_and_answer(
    _: Environment, gateway: Gateway, __: Random
) -> None:
    """The process is killed when its drops are committed, before any answer."""
    await kill_at(gateway, Moment.AFTER_DROPS)


async def gateway_frozen_before_drops(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is stopped when it sends its drops, and resumed after COMMIT_TIMEOUT_S."""
    await freeze_at(gateway, Moment.BEFORE_DROPS)


async def connection_cut_after_drops(_: Environment, gateway: Gateway, __: Random) -> None:
    """The connection is reset when the drops are committed, before the server's answer arrives."""
    (await gateway.database.catch(Moment.AFTER_DROPS)).cut()


async def quarantine_locked(environment: Environment, _: Gateway, random: Random) -> None:
    """A lock on the table of drops is held for longer than COMMIT_TIMEOUT_S."""
    async with environment.locked("dropped"):
        await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.2, 1))


FAULTS: tuple[Fault, ...] = (
    gateway_killed_between_drop_and_answer,
    gateway_frozen_before_drops,
    connection_cut_after_drops,
    quarantine_locked,
)
