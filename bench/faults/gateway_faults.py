"""The faults of a gateway and of its connections to the database."""

import asyncio
import signal
from random import Random

from bench.faults.fault import Fault, blackhole_at, freeze_at, kill_at
from bench.testbed.environment import Environment
from bench.testbed.gateway import Gateway
from bench.testbed.process import BenchError
from bench.testbed.proxy import Moment
from bench.testbed.threads import in_thread


async def gateway_killed_between_claim_and_commit(
    _: Environment, gateway: Gateway, __: Random
) -> None:
    """The process is killed after the claim of its events, before its first row."""
    await kill_at(gateway, Moment.BEFORE_COPY)


async def gateway_killed_in_copy(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is killed when half of its rows are on the server."""
    await kill_at(gateway, Moment.IN_COPY)


async def gateway_killed_before_commit(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is killed when its rows are written and not committed."""
    await kill_at(gateway, Moment.BEFORE_COMMIT)


async def gateway_killed_between_commit_and_answer(
    _: Environment, gateway: Gateway, __: Random
) -> None:
    """The process is killed when its rows are committed, before any answer."""
    await kill_at(gateway, Moment.AFTER_COMMIT)


async def gateway_killed_at_random(_: Environment, gateway: Gateway, random: Random) -> None:
    """The process is killed at a random moment."""
    await asyncio.sleep(random.uniform(0, 0.5))
    await in_thread(gateway.kill)
    await gateway.start_ready()


async def gateway_frozen_in_copy(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is stopped in the middle of a COPY until its claims have ended, and resumed."""
    await freeze_at(gateway, Moment.IN_COPY)


async def gateway_frozen_before_commit(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is stopped when its rows are written: it holds the locks of contested events."""
    await freeze_at(gateway, Moment.BEFORE_COMMIT)


async def gateway_terminated(_: Environment, gateway: Gateway, __: Random) -> None:
    """SIGTERM under load."""
    gateway.signal(signal.SIGTERM)
    exit_code = await asyncio.to_thread(gateway.wait)
    if exit_code:
        raise BenchError(f"exit code {exit_code} after SIGTERM, see {gateway.log}")
    await gateway.start_ready()


async def connection_cut_in_copy(_: Environment, gateway: Gateway, __: Random) -> None:
    """The connection is reset when half of the rows are on the server."""
    (await gateway.database.catch(Moment.IN_COPY)).cut()


async def connection_cut_before_the_answer(_: Environment, gateway: Gateway, __: Random) -> None:
    """The connection is reset when the rows are committed, before the server's answer arrives."""
    (await gateway.database.catch(Moment.AFTER_COMMIT)).cut()


async def connection_blackholed_in_copy(_: Environment, gateway: Gateway, random: Random) -> None:
    """The network drops everything from the middle of a COPY on."""
    await blackhole_at(gateway, Moment.IN_COPY, random)


async def connection_blackholed_before_the_answer(
    _: Environment, gateway: Gateway, random: Random
) -> None:
    """The network drops everything from the commit of the rows on."""
    await blackhole_at(gateway, Moment.AFTER_COMMIT, random)


async def gateway_frozen_in_new_chunk(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is stopped in the COPY that creates the chunk of all new events."""
    await freeze_at(gateway, Moment.IN_COPY)


FAULTS: tuple[Fault, ...] = (
    gateway_killed_between_claim_and_commit,
    gateway_killed_in_copy,
    gateway_killed_before_commit,
    gateway_killed_between_commit_and_answer,
    gateway_killed_at_random,
    gateway_frozen_in_copy,
    gateway_frozen_before_commit,
    gateway_terminated,
    connection_cut_in_copy,
    connection_cut_before_the_answer,
    connection_blackholed_in_copy,
    connection_blackholed_before_the_answer,
    gateway_frozen_in_new_chunk,
)
