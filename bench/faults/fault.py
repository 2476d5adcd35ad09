"""The form of a fault, its environment and its effect, and the faults at a moment of a batch."""

import asyncio
import re
import signal
from collections.abc import Awaitable, Callable
from enum import Enum
from random import Random

from app.dev.processes import Server
from bench.testbed.environment import CLAIM_LEASE_S, COMMIT_TIMEOUT_S, Environment
from bench.testbed.gateway import Gateway
from bench.testbed.proxy import Moment
from bench.testbed.threads import in_thread
from bench.testbed.waits import until_true

Fault = Callable[[Environment, Gateway, Random], Awaitable[None]]


class ServerLog:
    """The errors that a database server logs from now on: they prove the effect of a fault."""

    def __init__(self, server: Server) -> None:
        self._path = server.log
        self._begin = server.log.stat().st_size

    async def until(self, error: bytes) -> None:
        """Return when an error has been logged that matches this pattern; raises TimeoutError."""
        await until_true(lambda: asyncio.to_thread(self._has, error))

    def _has(self, error: bytes) -> bool:
        with self._path.open("rb") as log:
            log.seek(self._begin)
            return re.search(error, log.read()) is not None


class Place(Enum):
    """The environment of a fault; each has gateways, a Redis and a database of its own.

    In the order of a run: the one with the most that can break comes first.
    """

    PAIR = "a primary and its synchronous standby"
    SINGLE = "one database"
    DATES = "one database with RETENTION_D"


async def kill_at(gateway: Gateway, moment: Moment) -> None:
    """Kill a gateway at a moment of its next batch, and start it again."""
    connection = await gateway.database.catch(moment)
    await in_thread(gateway.kill)
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


async def restart(gateway: Gateway, **settings: str) -> None:
    """Shut a gateway down in good order, and start it with these settings on top."""
    gateway.signal(signal.SIGTERM)
    await asyncio.to_thread(gateway.wait)
    await gateway.start_ready(settings)
