"""PgBouncer in transaction mode between one gateway and the database, and its faults."""

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from urllib.parse import urlsplit

from bench.faults.fault import Fault
from bench.testbed.client import metrics
from bench.testbed.environment import CLAIM_LEASE_S, COMMIT_TIMEOUT_S, Environment
from bench.testbed.gateway import Gateway
from bench.testbed.pgbouncer import PgBouncer, find_pgbouncer
from bench.testbed.process import BenchError
from bench.testbed.threads import in_thread
from bench.testbed.waits import until_true

_WRITTEN = "flokit_callbacks_written_total"


async def pooler_in_between(environment: Environment, gateway: Gateway, random: Random) -> None:
    """For some seconds one gateway writes through PgBouncer, the others directly."""
    async with _behind_pooler(environment, gateway):
        await asyncio.sleep(random.uniform(2, 4))


async def pooler_killed(environment: Environment, gateway: Gateway, random: Random) -> None:
    """PgBouncer is killed, and is back after a while."""
    async with _behind_pooler(environment, gateway) as pooler:
        await asyncio.sleep(random.uniform(0.5, 1))
        await in_thread(pooler.stop, signal.SIGKILL)
        await asyncio.sleep(random.uniform(0, 1))
        await pooler.start_ready()
        await asyncio.sleep(random.uniform(0.5, 1))


async def pooler_frozen(environment: Environment, gateway: Gateway, random: Random) -> None:
    """PgBouncer does not answer for longer than COMMIT_TIMEOUT_S."""
    async with _behind_pooler(environment, gateway) as pooler:
        await asyncio.sleep(random.uniform(0.5, 1))
        pooler.send_signal(signal.SIGSTOP)
        await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.5, 1))
        pooler.send_signal(signal.SIGCONT)
        await asyncio.sleep(random.uniform(0.5, 1))


async def gateway_frozen_behind_pooler(
    environment: Environment, gateway: Gateway, random: Random
) -> None:
    """A gateway behind PgBouncer is stopped until its claims have ended, and resumed."""
    async with _behind_pooler(environment, gateway):
        await asyncio.sleep(random.uniform(0.5, 1))
        gateway.signal(signal.SIGSTOP)
        await asyncio.sleep(CLAIM_LEASE_S + 1)
        gateway.signal(signal.SIGCONT)


@asynccontextmanager
async def _behind_pooler(environment: Environment, gateway: Gateway) -> AsyncIterator[PgBouncer]:
    """Lead the connections of a gateway through a PgBouncer of its own meanwhile."""
    url = urlsplit(environment.database_url)
    assert url.username is not None
    assert url.password is not None
    program = await asyncio.to_thread(find_pgbouncer)
    folder = environment.folder / f"pgbouncer-{gateway.port}"
    folder.mkdir(exist_ok=True)
    settings = {"default_pool_size": "3"}
    pooler = PgBouncer(
        program, folder, environment.database_url, url.username, url.password, settings
    )
    direct = gateway.database.target
    await environment.execute(*pooler.role_settings())
    try:
        await pooler.start_ready()
        gateway.database.target = (direct[0], pooler.port)
        gateway.database.cut()
        await _until_written(gateway)
        yield pooler
        if pooler.has_ended:
            raise BenchError(f"PgBouncer has ended by itself, see {folder}")
    finally:
        gateway.database.target = direct
        gateway.database.cut()
        await in_thread(pooler.stop)
        await environment.execute(f"ALTER ROLE {url.username} RESET ALL")


async def _until_written(gateway: Gateway) -> None:
    """Return when the gateway has written an event: on its only way to the database."""
    before = await _written(gateway)

    async def has_written() -> bool:
        return await _written(gateway) > before

    await until_true(has_written)


async def _written(gateway: Gateway) -> float:
    found = await metrics(gateway.port)
    return sum(value for series, value in found.items() if series.startswith(_WRITTEN))


QUICK: tuple[Fault, ...] = (pooler_in_between, pooler_killed)
FAULTS: tuple[Fault, ...] = (*QUICK, pooler_frozen, gateway_frozen_behind_pooler)
