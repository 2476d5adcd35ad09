"""Measurements of a running contender: its peak rate and costs, its latency, and its rows."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from bench.contenders import Contender
from bench.performance.footprint import sizes
from bench.testbed.environment import DEFAULT_TIMEOUTS, Environment
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
from bench.testbed.process import ServerProcess
from bench.testbed.usage import cpu_s, cpu_times, peak_memory_bytes, reset_peak_memory
from sinks.timescale import schema

# Callbacks in flight at the end of wrk are committed soon after, and settled within a second.
COMMITTED_TIMEOUT_S = 5.0
SETTLED_S = 1.2
PAUSE_S = 0.6
_POLL_S = 0.2
_ROWS = "SELECT (SELECT count(*) FROM events) + (SELECT count(*) FROM dropped)"
# Of k6, beyond its rate, at the begin and the end of a duration.
_EXTRA = 4


class Cost(msgspec.Struct, frozen=True):
    """CPU of each process for one request, in microseconds."""

    server_us: float
    server_user_us: float  # of it in user mode
    database_us: float
    redis_us: float


class PeakRound(msgspec.Struct, frozen=True):
    """One round in a closed loop: the answers a second, and the cost of each."""

    rate: float
    cost: Cost
    rows: int  # written by this round
    peak_memory_bytes: int  # of the server's largest process
    wrk: Peak
    problem: str = ""  # a difference of rows and answers, or a missing answer


class LatencyRound(msgspec.Struct, frozen=True):
    """One round in an open loop."""

    rows: int
    k6: Latency
    problem: str = ""


COSTS: dict[str, Callable[[PeakRound], float]] = {
    "server": lambda round_: round_.cost.server_us,
    "database": lambda round_: round_.cost.database_us,
    "Redis": lambda round_: round_.cost.redis_us,
}
PERCENTILES: dict[str, Callable[[LatencyRound], float]] = {
    "p50": lambda round_: round_.k6.p50_ms,
    "p95": lambda round_: round_.k6.p95_ms,
    "p99": lambda round_: round_.k6.p99_ms,
    "p99.9": lambda round_: round_.k6.p999_ms,
}


class Footprint(msgspec.Struct, frozen=True):
    """The size of the table, over all its chunks."""

    rows: int
    table_bytes: int  # TOAST included
    indexes_bytes: int


class Running(NamedTuple):
    """A started contender."""

    contender: Contender
    process: ServerProcess


class Bench:
    """Measures contenders on the servers of an environment."""

    def __init__(self, environment: Environment) -> None:
        self.environment = environment

    @asynccontextmanager
    async def start(
        self, contender: Contender, settings: Mapping[str, str] = MappingProxyType({})
    ) -> AsyncIterator[Running]:
        """Run a contender directly on the servers, with these settings; raises BenchError."""
        serving = self.environment.serve(
            contender.name, contender.arguments, DEFAULT_TIMEOUTS | dict(settings), contender.ready
        )
        async with serving as process:
            yield Running(contender, process)

    async def clear(self) -> None:
        """Delete every row, and write everything back that the next round would pay for."""
        await asyncio.sleep(PAUSE_S)
        async with self.environment.connected() as connection:
            await connection.execute("TRUNCATE events, stable_events, dropped, quarantine_usage")
            for table in ("events", "dropped"):
                await schema.keep_chunk_ahead(connection, table, datetime.now(UTC))
            await connection.execute("CHECKPOINT")
        async with self.environment.redis() as redis:
            await redis.flushall()

    async def peak(
        self,
        running: Running,
        duration_s: float,
        *,
        mix: Mix = FRESH,
        connections: int = CONNECTIONS,
    ) -> PeakRound:
        """Load a contender in a closed loop; rows and claims of earlier rounds stay."""
        rows = await self.rows()
        reset_peak_memory(running.process.pid)
        before = self._cpu_s(running)
        wrk = await run_wrk(
            running.process.port,
            duration_s,
            folder=self.environment.folder,
            mix=mix,
            connections=connections,
        )
        cost = Cost(
            *(
                1e6 * (after - start) / max(1, wrk.requests)
                for start, after in zip(before, self._cpu_s(running), strict=True)
            )
        )
        most = wrk.fresh + wrk.dropped
        least = most - connections - 1
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

        `may_refuse` is for rates beyond the capacity, where a 5xx is no problem.
        """
        rows = await self.rows()
        k6 = await run_k6(
            running.process.port,
            rate,
            duration_s,
            folder=self.environment.folder,
            mix=mix,
            warm_up_s=warm_up_s,
        )
        least = k6.written + k6.dropped
        written = await self._written(rows, least)
        problem = balance(written, least, sent_at_most(k6, warm_up_s + duration_s))
        if k6.unanswered and not may_refuse:
            problem = f"{k6.unanswered} callbacks were not answered with 200"
        return LatencyRound(rows=written, k6=k6, problem=problem)

    async def durable_floor(self, rate: float, duration_s: float) -> dict[str, float]:
        """Measure a claim and a COPY of one row at a time."""
        environ = self.environment.environ
        return await run_durable_floor(environ, rate, duration_s, folder=self.environment.folder)

    async def rows(self) -> int:
        """Return the number of rows, of events and in quarantine."""
        async with self.environment.connected() as connection:
            return int(await connection.fetchval(_ROWS))

    async def table_bytes(self) -> Footprint:
        """Return the size of the table on disk."""
        async with self.environment.connected() as connection:
            return Footprint(await self.rows(), *await sizes(connection))

    async def remembered(self) -> tuple[int, int]:
        """Return the number of keys in Redis after the last settling, and its used memory."""
        await asyncio.sleep(SETTLED_S)
        async with self.environment.redis() as redis:
            memory = await redis.info("memory")
            return int(await redis.dbsize()), int(memory["used_memory"])

    def _cpu_s(self, running: Running) -> tuple[float, float, float, float]:
        servers = self.environment.servers
        server = cpu_times(running.process.pid)
        return sum(server), server.user_s, cpu_s(servers.postgres.pid), cpu_s(servers.redis.pid)

    async def _written(self, before: int, least: int) -> int:
        deadline = time.monotonic() + COMMITTED_TIMEOUT_S
        written = -1
        while True:
            # Until the number is stable: late rows would count for the next round.
            last, written = written, await self.rows() - before
            if last == written >= least or time.monotonic() > deadline:
                return written
            await asyncio.sleep(_POLL_S)


def sent_at_most(k6: Latency, duration_s: float) -> float:
    """Return the most callbacks that k6 can have sent: its count, or its rate times the duration.

    Its count lacks callbacks without an answer at the end of a warm-up.
    """
    return max(k6.sent, round(k6.offered) * duration_s + _EXTRA)


def balance(rows: int, least: int, most: float) -> str:
    """Return the fault of the number of rows; empty if it is right."""
    if rows < least:
        return f"{least - rows} rows fewer than were answered"
    return f"{rows - most:.0f} rows more than were sent" if rows > most else ""
