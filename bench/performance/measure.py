"""The pieces of every measurement: a clean start, a contender under load, what it cost, the books.

`Bench` has one method for each: `start` a contender, find its `peak` with wrk and what each process
pays for it, its `latency` at a fixed rate with k6, and what the table and Redis hold.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

import msgspec
from redis.asyncio import Redis

from bench.contenders import Contender
from bench.performance.footprint import sizes
from bench.testbed.environment import Stage
from bench.testbed.gateway import Process
from bench.testbed.load import (
    CONNECTIONS,
    FRESH,
    Latency,
    Mix,
    Peak,
    run_durable_floor,
    run_k6,
    run_wrk,
)
from bench.testbed.processes import cpu_s, cpu_times, forget_peak_memory, peak_memory_bytes
from sinks.timescale import schema

# Those of the product; the stage's are for faults.
SETTINGS = {"COMMIT_TIMEOUT_S": "5", "CLAIM_LEASE_S": "15"}
# What was under way when wrk hung up is committed soon after, and settled within a second.
BOOKS_TIMEOUT_S = 5.0
SETTLED_S = 1.2
PAUSE_S = 0.6
_POLL_S = 0.2
# What k6 may send more than asked for, where a duration begins and where it ends.
_EXTRA = 4


class Cost(msgspec.Struct, frozen=True):
    """CPU of each process for one request, in microseconds."""

    server_us: float
    server_user_us: float  # of it in user mode
    database_us: float
    redis_us: float


class PeakRound(msgspec.Struct, frozen=True):
    """One round in closed loop: how many answers a second, and what each has cost."""

    rate: float
    cost: Cost
    rows: int  # written by this round
    peak_memory_bytes: int  # of the server's largest process
    wrk: Peak
    problem: str = ""  # why the round does not count as durable


class LatencyRound(msgspec.Struct, frozen=True):
    """One round in open loop."""

    rows: int
    k6: Latency
    problem: str = ""


class Footprint(msgspec.Struct, frozen=True):
    """What the table takes up, over all its chunks."""

    rows: int
    table_bytes: int  # with what PostgreSQL keeps beside long values
    indexes_bytes: int


class Running(NamedTuple):
    """A contender that has been started."""

    contender: Contender
    process: Process


class Bench:
    """Measures contenders on the servers of a stage. Finding what is wrong is up to the caller."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @asynccontextmanager
    async def start(
        self, contender: Contender, settings: Mapping[str, str] = MappingProxyType({})
    ) -> AsyncIterator[Running]:
        """Run a contender directly on the servers, with these settings; raises BenchError."""
        serving = self.stage.serve(
            contender.name, contender.arguments, SETTINGS | dict(settings), contender.ready
        )
        async with serving as process:
            yield Running(contender, process)

    async def clear(self) -> None:
        """Forget every event, and leave little over that the next round would pay for."""
        await asyncio.sleep(PAUSE_S)
        connection = await self.stage.connect()
        await connection.execute("TRUNCATE events, stable_events")
        await schema.keep_chunk_ahead(connection, datetime.now(UTC))
        await connection.execute("CHECKPOINT")
        await connection.close()
        async with Redis.from_url(self.stage.servers.redis_url) as redis:
            await redis.flushall()

    async def peak(
        self,
        running: Running,
        duration_s: float,
        *,
        mix: Mix = FRESH,
        connections: int = CONNECTIONS,
    ) -> PeakRound:
        """Keep so many connections busy. What is in the table and in Redis stays there."""
        rows = await self.rows()
        forget_peak_memory(running.process.pid)
        before = self._cpu_s(running)
        wrk = await run_wrk(
            running.process.port,
            duration_s,
            folder=self.stage.folder,
            mix=mix,
            connections=connections,
        )
        cost = Cost(
            *(
                1e6 * (after - start) / max(1, wrk.requests)
                for start, after in zip(before, self._cpu_s(running), strict=True)
            )
        )
        least, most = wrk.fresh - connections - 1, wrk.fresh
        written, problem = 0, ""
        if running.contender.is_durable:
            written = await self._written(rows, least)
            problem = balance(written, least, most)
        if lost := wrk.not_200 + wrk.broken + wrk.timed_out:
            problem = f"{lost} callbacks were not answered with 200"
        return PeakRound(
            rate=wrk.requests / wrk.duration_s,
            cost=cost,
            rows=written,
            peak_memory_bytes=peak_memory_bytes(running.process.pid),
            wrk=wrk,
            problem=problem,
        )

    async def latency(
        self,
        running: Running,
        rate: float,
        duration_s: float,
        *,
        mix: Mix = FRESH,
        warm_up_s: float = 0,
        may_refuse: bool = False,
    ) -> LatencyRound:
        """Send callbacks at a fixed rate; percentiles begin after the warm-up.

        `may_refuse` is for rates that are too high: that some callbacks get a 5xx is no problem.
        """
        rows = await self.rows()
        k6 = await run_k6(
            running.process.port,
            rate,
            duration_s,
            folder=self.stage.folder,
            mix=mix,
            warm_up_s=warm_up_s,
        )
        written = await self._written(rows, k6.written)
        problem = balance(written, k6.written, sent_at_most(k6, warm_up_s + duration_s))
        if k6.unanswered and not may_refuse:
            problem = f"{k6.unanswered} callbacks were not answered with 200"
        return LatencyRound(rows=written, k6=k6, problem=problem)

    async def durable_floor(self, rate: float, duration_s: float) -> dict[str, float]:
        """Claim and copy one row at a time."""
        environ = self.stage.environ
        return await run_durable_floor(environ, rate, duration_s, folder=self.stage.folder)

    async def rows(self) -> int:
        """Return how many events are in the table."""
        connection = await self.stage.connect()
        try:
            return int(await connection.fetchval("SELECT count(*) FROM events"))
        finally:
            await connection.close()

    async def table_bytes(self) -> Footprint:
        """Return what the events in the table take up on disk."""
        connection = await self.stage.connect()
        try:
            return Footprint(await self.rows(), *await sizes(connection))
        finally:
            await connection.close()

    async def remembered(self) -> tuple[int, int]:
        """Return how many keys Redis holds once all is settled, and how many bytes it uses."""
        await asyncio.sleep(SETTLED_S)
        async with Redis.from_url(self.stage.servers.redis_url) as redis:
            memory = await redis.info("memory")
            return int(await redis.dbsize()), int(memory["used_memory"])

    def _cpu_s(self, running: Running) -> tuple[float, float, float, float]:
        servers = self.stage.servers
        server = cpu_times(running.process.pid)
        return sum(server), server.user_s, cpu_s(servers.postgres.pid), cpu_s(servers.redis.pid)

    async def _written(self, before: int, least: int) -> int:
        deadline = time.monotonic() + BOOKS_TIMEOUT_S
        written = -1
        while True:
            # Until no more of them come: they would be taken for rows of the next round.
            last, written = written, await self.rows() - before
            if last == written >= least or time.monotonic() > deadline:
                return written
            await asyncio.sleep(_POLL_S)


def sent_at_most(k6: Latency, duration_s: float) -> float:
    """Return how many callbacks k6 can have sent: those it tells of, or else what it was told to.

    It does not wait for ever at the end of a warm-up: of some it may not have seen the answers.
    """
    return max(k6.sent, round(k6.offered) * duration_s + _EXTRA)


def balance(rows: int, least: int, most: float) -> str:
    """Return what is wrong with the number of rows; empty where it is right."""
    if rows < least:
        return f"{least - rows} rows fewer than were answered"
    return f"{rows - most:.0f} rows more than were sent" if rows > most else ""
