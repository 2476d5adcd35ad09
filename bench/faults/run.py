"""One run: a vendor sends callbacks while faults are injected, and the oracle judges the table."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

from bench.faults.clock_faults import AHEAD_S
from bench.faults.fault import Place
from bench.faults.faults import FAULTS, NEW_DAY
from bench.faults.oracle import judge
from bench.faults.reader import LOOK_BACK, Reading, following
from bench.faults.schedule import TAIL, Injection, Schedule
from bench.faults.verdict import Verdict
from bench.testbed.chronicle import Disturbance
from bench.testbed.console import Progress
from bench.testbed.drops import POISON_RULES
from bench.testbed.environment import Environment, open_environment
from bench.testbed.ledger import Ledger
from bench.testbed.machine import Machine, describe_machine
from bench.testbed.process import SERVE, BenchError
from bench.testbed.vendor import RETRY_AFTER_S, Vendor
from sinks.timescale.sink import SHORT_WAITS_S

# Of a fresh callback, from the end of a fault to its final answer.
RECOVERY_MAX_S = 10.0
# Of two gateways, one ahead and later the other behind.
CLOCKS_APART = timedelta(seconds=2 * AHEAD_S)
# A contested event that a frozen writer has held up shortens the waits of others, for so long.
_GRACE_S = SHORT_WAITS_S
_PROBE_S = 0.05
_SHOW_S = 0.5


@dataclass
class Result:
    """The result of a run."""

    schedule: Schedule
    machine: Machine
    ledger: Ledger
    verdict: Verdict
    reading: Reading
    duration_s: float
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    stuck: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, doubled, lied about, failed, stuck, or missed by the reader."""
        return self.verdict.is_clean and not self.stuck and not self.reading.missed

    @property
    def injections(self) -> Counter[str]:
        """The number of injections, by fault."""
        return Counter({name: len(times) for name, times in self.recovery_s.items()})


async def run(
    schedule: Schedule,
    progress: Progress,
    *,
    folder: Path | None = None,
    arguments: Sequence[str] = SERVE,
    statements: Sequence[str] = (),
    retry_after_s: Sequence[float] = RETRY_AFTER_S,
    recovery_max_s: float = RECOVERY_MAX_S,
) -> Result:
    """Run a schedule against real processes; raises EmbeddedError and BenchError."""
    started = time.monotonic()
    schedule = replace(schedule, now=datetime.now(UTC).replace(microsecond=0))
    async with open_environment(
        folder=folder,
        gateways=schedule.gateways,
        arguments=arguments,
        settings=schedule.settings,
        statements=(*POISON_RULES, *statements),
        has_standby=schedule.place is Place.PAIR,
    ) as environment:
        ports = [gateway.port for gateway in environment.gateways]
        vendor = Vendor(schedule.generator, ports, schedule.rate, retry_after_s=retry_after_s)
        running = _Run(schedule, environment, vendor, progress, recovery_max_s)
        look_back = LOOK_BACK + (CLOCKS_APART if schedule.place is Place.DATES else timedelta())
        try:
            async with following(environment.connected, look_back) as reader:
                await running.run()
        finally:
            await vendor.close()
        reading = await reader.finish()
        progress.step("comparing ledger and table")
        return Result(
            schedule,
            describe_machine(environment.servers.description),
            vendor.ledger,
            await running.judge(),
            reading,
            time.monotonic() - started,
            running.recovery_s,
            running.stuck,
        )


class _Run:
    def __init__(
        self,
        schedule: Schedule,
        environment: Environment,
        vendor: Vendor,
        progress: Progress,
        recovery_max_s: float,
    ) -> None:
        self.probes = 0
        self.recovery_s: dict[str, list[float]] = {}
        self.stuck: list[str] = []
        self._schedule = schedule
        self._environment = environment
        self._vendor = vendor
        self._progress = progress
        self._recovery_max_s = recovery_max_s
        self._cuts = 0
        self._disturbances: list[Disturbance] = []
        environment.chronicle.disturbances = self._disturbances
        self._generator = schedule.generator

    async def run(self) -> None:
        """Send everything, with each injection at its point, and wait for every answer."""
        showing = asyncio.create_task(self._show())
        injecting: asyncio.Task[None] | None = None
        try:
            for injection in self._schedule.injections:
                await self._vendor.send(injection.at)
                if injecting is not None:
                    await injecting
                if injection.fault in NEW_DAY:
                    await self._expect_no_chunk(injection)
                injecting = asyncio.create_task(self._inject(injection))
            if injecting is not None:
                await self._vendor.send(int(self._schedule.callbacks * (1 - TAIL)))
                await injecting
                await asyncio.sleep(_GRACE_S)
            await self._vendor.send(self._schedule.callbacks)
            self._progress.step("waiting for the last retries")
            await self._vendor.finish()
            for number in await self._vendor.retry_given_up():
                self.stuck.append(f"callback {number} has no final answer")
        finally:
            for task in (showing, injecting):
                if task is not None:
                    task.cancel()
                    with suppress(asyncio.CancelledError, Exception):  # already raised above
                        await task

    async def judge(self) -> Verdict:
        """Return the verdict of the oracle."""
        environment = self._environment
        async with environment.connected() as connection:
            return await judge(
                connection,
                self._generator,
                self._vendor.ledger,
                self._schedule.callbacks + self.probes,
                chronicle=environment.chronicle,
            )

    async def _show(self) -> None:
        while True:
            self._progress.show(self._vendor.begun)
            await asyncio.sleep(_SHOW_S)

    async def _inject(self, injection: Injection) -> None:
        gateways = self._environment.gateways
        random = Random(f"{self._schedule.seed} {injection.at}")  # noqa: S311 - repeatable
        self._progress.step(injection.fault)
        since = time.time()
        try:
            await FAULTS[injection.fault](self._environment, gateways[injection.gateway], random)
        except TimeoutError:
            raise BenchError(f"{injection.fault}: not injected, or not over, in time") from None
        over = time.monotonic()
        numbers = range(len(gateways))
        recovered = await asyncio.gather(*(self._recovers(number, over) for number in numbers))
        for number in numbers:
            if not recovered[number]:
                self.stuck.append(f"{injection.fault} at {injection.at}: gateway {number}")
        self._disturbances.append(Disturbance(since, time.time() + _GRACE_S))
        self.recovery_s.setdefault(injection.fault, []).append(time.monotonic() - over)
        for cut in self._environment.chronicle.cuts[self._cuts :]:
            self._cuts += 1
            await self._vendor.send_again(cut.target, cut.back)
        for number, gateway in enumerate(gateways):
            if gateway.exit_code is not None:
                raise BenchError(f"gateway {number} has ended by itself, see {gateway.log}")

    async def _recovers(self, gateway: int, over: float) -> bool:
        """Whether a fresh event and a fresh drop succeed in time."""
        missing = {True, False}  # whether there is a row of events
        while time.monotonic() - over < self._recovery_max_s:
            event = self._generator.event(self._schedule.callbacks + self.probes)
            self.probes += 1
            is_event = event.row is not None
            if is_event not in missing:
                continue
            kind = await self._vendor.deliver_once(event, gateway)
            if kind.is_final:
                missing.discard(is_event)
            if not missing:
                return time.monotonic() - over < self._recovery_max_s
            await asyncio.sleep(0 if kind.is_final else _PROBE_S)
        return False

    async def _expect_no_chunk(self, injection: Injection) -> None:
        """Raise BenchError if the chunk exists that a fault needs to be missing."""
        day = self._generator.day(injection.at)
        if self._environment.servers.has_timescaledb and await self._environment.has_chunk(day):
            raise BenchError(f"{injection.fault}: a chunk for {day:%Y-%m-%d} exists already")
