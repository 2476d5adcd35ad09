"""One run: callbacks at a fixed rate through failovers, and the verdict of the oracle."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from redis.asyncio import Redis

from bench.failover.environment import Environment, Route, open_environment
from bench.failover.timeline import Failover
from bench.failover.watcher import Watcher, watching
from bench.faults.oracle import judge
from bench.faults.verdict import Verdict
from bench.testbed.client import Connection
from bench.testbed.console import Progress
from bench.testbed.deliveries import MIX, EventGenerator
from bench.testbed.ledger import AnswerKind, Ledger, classify
from bench.testbed.machine import Machine, describe_machine
from bench.testbed.process import PATIENCE_S, POLL_S, BenchError
from bench.testbed.threads import in_thread
from bench.testbed.vendor import ANSWER_TIMEOUT_S, Vendor
from bench.topologies.node import Node

# Callbacks of an undisturbed database before each fault.
STEADY_S = 3.0
# The former primary returns so long after the promotion.
RETURN_S = 2.0
# At most so many seconds of callbacks for each failover.
CALLBACKS_S = 90
REDIS_TIMEOUT_S = 10.0


class Fault(Enum):
    """The end of a primary; the values are printed."""

    FENCED = "machine lost, fenced"  # the lock is released by hand
    CRASHED = "PostgreSQL killed"
    SWITCHED = "switch-over"
    LOST = "machine lost"  # the lock expires


# The `ttl` of docs/high-availability/patroni.yml: the lock of a dead primary lasts so long.
LOCK_S = 20.0
WITHIN_S = 15.0
# Within this time some gateway writes again, and each of them.
WRITTEN_WITHIN_S = dict.fromkeys(Fault, WITHIN_S) | {Fault.LOST: LOCK_S + WITHIN_S}


@dataclass
class Result:
    """The result of a run."""

    machine: Machine
    route: Route
    ledger: Ledger
    verdict: Verdict
    duration_s: float
    failovers: list[Failover] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, doubled, lied about, or stuck."""
        return self.verdict.is_clean and not self.stuck

    @property
    def late(self) -> list[str]:
        """The times of the failovers that are too long."""
        return [
            f"failover {number}: {late}"
            for number, failover in enumerate(self.failovers, 1)
            for late in failover.late(WRITTEN_WITHIN_S[Fault(failover.fault)])
        ]


@dataclass
class _Run:
    servers: Environment
    vendor: Vendor
    generator: EventGenerator
    watcher: Watcher
    promote_after_s: float
    progress: Progress
    failovers: list[Failover] = field(default_factory=list)
    probes: int = 0

    @property
    def events(self) -> int:
        """A number above those of all events that were sent."""
        return self.generator.probes_from + self.probes

    async def run(self, faults: Sequence[Fault]) -> None:
        sending = asyncio.create_task(self._send())
        try:
            for number, fault in enumerate(faults):
                self.progress.show(number)
                await self._fail_over(fault, number)
                if sending.done():
                    sending.result()
            await asyncio.sleep(STEADY_S)
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        self.progress.step("waiting for the last retries")
        await self.vendor.finish()

    async def _send(self) -> None:
        while self.vendor.begun < self.generator.probes_from:
            await self.vendor.send(self.vendor.begun + 1)
        raise BenchError(f"a failover takes longer than {CALLBACKS_S} s: no callback is left")

    async def _fail_over(self, fault: Fault, number: int) -> None:
        self.progress.step("waiting for every standby")
        former = await self.servers.cluster.until_whole()
        await asyncio.sleep(STEADY_S)
        self.progress.step(fault.value)
        failover = Failover(fault.value, time.time())
        self.failovers.append(failover)
        self.watcher.begin(failover, former)
        await self._disturb(fault, former)
        async with asyncio.timeout(PATIENCE_S):
            leader = await self.watcher.until_promoted()
            await self._disturb_redis(failover, number)
            await asyncio.gather(*(self._until_written(port) for port in self.servers.ports))
        failover.every_gateway_at = time.time()
        await asyncio.sleep(RETURN_S)
        await in_thread(self.servers.redis.server.start)
        if fault in (Fault.FENCED, Fault.LOST):
            former.start()
        self.progress.step(f"waiting for {former.name} as a standby of {leader.name}")
        await self.servers.cluster.until_whole()
        failover.whole_at = time.time()

    async def _disturb(self, fault: Fault, former: Node) -> None:
        match fault:
            case Fault.FENCED:
                await in_thread(former.kill)
                await asyncio.sleep(self.promote_after_s)
                await in_thread(self.servers.cluster.fence)
            case Fault.LOST:
                await in_thread(former.kill)
            case Fault.CRASHED:
                former.crash()
            case Fault.SWITCHED:
                await in_thread(self.servers.cluster.switch_over)

    async def _disturb_redis(self, failover: Failover, number: int) -> None:
        """Take the keys of Redis, or Redis, away in two of three failovers."""
        match number % 3:
            case 1:
                failover.redis = "flushed"
                async with Redis.from_url(
                    self.servers.redis.url, socket_timeout=REDIS_TIMEOUT_S
                ) as redis:
                    await redis.flushall()
            case 2:
                failover.redis = "killed"
                await in_thread(self.servers.redis.server.kill)

    async def _until_written(self, port: int) -> None:
        """Send callbacks to one gateway, past those that wait for their turn, until a `written`."""
        while True:
            event = self.generator.event(self.events)
            self.probes += 1
            if event.row is None:
                continue
            connection = Connection(port)
            answer = await connection.send(event.deliveries[0].request, ANSWER_TIMEOUT_S)
            connection.close()
            kind = classify(answer)
            self.vendor.ledger.note(event.number, kind, answer.sent_at, answer.answered_at)
            if kind is AnswerKind.WRITTEN:
                return
            await asyncio.sleep(POLL_S)


async def run(
    progress: Progress,
    faults: Sequence[Fault],
    *,
    route: Route = Route.HAPROXY,
    rate: float = 200.0,
    promote_after_s: float = 4.0,
    seed: int = 1,
    folder: Path | None = None,
) -> Result:
    """Run these failovers in turn; raises EmbeddedError and BenchError."""
    started = time.monotonic()
    callbacks_max = int(rate * CALLBACKS_S * (1 + len(faults)))
    generator = EventGenerator(seed, probes_from=callbacks_max, vendors=MIX)
    async with AsyncExitStack() as stack:
        progress.step("starting the servers")
        servers = await stack.enter_async_context(open_environment(folder, route))
        cluster = servers.cluster
        vendor = Vendor(generator, servers.ports, rate)
        stack.push_async_callback(vendor.close)
        watcher = await stack.enter_async_context(watching(cluster, servers.proxy))
        running = _Run(servers, vendor, generator, watcher, promote_after_s, progress)
        try:
            await running.run(faults)
        except TimeoutError:
            raise BenchError(f"a failover does not end, see {cluster.folder}") from None
        stuck = [
            f"callback {number} has no final answer" for number in await vendor.retry_given_up()
        ]
        progress.step("comparing ledger and table")
        async with cluster.connected() as connection:
            verdict = await judge(connection, generator, vendor.ledger, running.events)
        _complete(running.failovers, vendor.ledger)
        return Result(
            describe_machine(servers.description),
            route,
            vendor.ledger,
            verdict,
            time.monotonic() - started,
            running.failovers,
            stuck,
        )


def _complete(failovers: Sequence[Failover], ledger: Ledger) -> None:
    written = sorted(entry.answered_at for entry in ledger if entry.kind is AnswerKind.WRITTEN)
    for failover in failovers:
        failover.complete(written)
