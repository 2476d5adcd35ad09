"""`curves`: the gateway over rate, connections, table size, duplicates and workers."""

import argparse
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench import contenders
from bench.performance import curves_report
from bench.performance.curves_report import (
    CONNECTIONS,
    DUPLICATES,
    ONE_CHUNK,
    SEVERAL_CHUNKS,
    WORKERS,
    Curves,
)
from bench.performance.fill import fill
from bench.performance.measure import Bench, Running
from bench.performance.schedules import QUICK_CURVES, CurvesSchedule
from bench.testbed import documents, load
from bench.testbed.console import Progress, markdown_table
from bench.testbed.environment import open_environment
from bench.testbed.load import FRESH, Mix
from bench.testbed.machine import Machine, describe_machine
from bench.testbed.results import Commands, add_options
from bench.testbed.usage import peak_memory_bytes

Step = tuple[str, Callable[[], Awaitable[None]]]


async def run(schedule: CurvesSchedule, folder: Path | None = None) -> tuple[Curves, Machine]:
    """Measure every curve; raises EmbeddedError and BenchError."""
    async with AsyncExitStack() as stack:
        environment = await stack.enter_async_context(open_environment(folder=folder, gateways=0))
        bench = Bench(environment)
        started = {}
        for number in schedule.workers:
            gateway = contenders.GATEWAY
            running = await stack.enter_async_context(
                bench.start(gateway, {"WORKERS": str(number)})
            )
            started[number] = running
        measuring = _Measuring(bench, schedule, started)
        measuring.curves.idle_bytes = peak_memory_bytes(started[1].process.pid)
        progress = stack.enter_context(Progress(len(measuring.steps()), "steps"))
        for number, (name, step) in enumerate(measuring.steps()):
            progress.show(number)
            progress.step(name)
            await step()
        return measuring.curves, describe_machine(environment.servers.description)


class _Measuring:
    def __init__(
        self, bench: Bench, schedule: CurvesSchedule, started: Mapping[int, Running]
    ) -> None:
        self.curves = Curves()
        self._bench = bench
        self._schedule = schedule
        self._started = started  # by the number of workers
        self._rate = 0.0

    def steps(self) -> list[Step]:
        """Return all steps in order: in each round every point of a curve in turn."""
        schedule = self._schedule
        groups: list[list[Step]] = [
            [self._latency(rate) for rate in schedule.rates],
            [
                self._peak(CONNECTIONS, number, connections=number)
                for number in schedule.connections
            ],
            [
                self._peak(DUPLICATES, percent, mix=Mix(duplicates=percent / 100))
                for percent in schedule.duplicates
            ],
            [self._peak(WORKERS, number, workers=number) for number in schedule.workers],
        ]
        times = range(schedule.rounds)
        return [
            *(self._warm_up(workers) for workers in schedule.workers),
            # Back and forth: the first point of one round is the last of the next.
            *(
                step
                for group in groups
                for turn in times
                for step in group[:: -1 if turn % 2 else 1]
            ),
            *(self._remember(number) for number in schedule.remembered),
            ("bytes of a row", self._weigh),
            *self._over_rows(ONE_CHUNK, 1, schedule.rows),
            # The smaller sizes fill few chunks.
            *self._over_rows(SEVERAL_CHUNKS, schedule.days, schedule.rows[-2:]),
        ]

    def _warm_up(self, workers: int) -> Step:
        async def step() -> None:
            await self._bench.peak(self._started[workers], self._schedule.warm_up_s)

        return "warm-up", step

    def _latency(self, rate: int) -> Step:
        async def step() -> None:
            await self._bench.clear()
            round_ = await self._bench.latency(
                self._started[1],
                rate,
                self._schedule.latency_s,
                warm_up_s=self._schedule.latency_warm_up_s,
                may_refuse=True,
            )
            self.curves.latencies.setdefault(rate, []).append(round_)

        return f"{rate:,}/s", step

    def _peak(
        self,
        curve: str,
        point: int,
        *,
        workers: int = 1,
        keep: bool = False,
        mix: Mix = FRESH,
        connections: int = load.CONNECTIONS,
    ) -> Step:
        async def step() -> None:
            if not keep:
                await self._bench.clear()
            running = self._started[workers]
            round_ = await self._bench.peak(
                running, self._schedule.peak_s, mix=mix, connections=connections
            )
            self.curves.peaks.setdefault(curve, {}).setdefault(point, []).append(round_)
            self._rate = round_.rate

        return f"{point:,} {curve}", step

    def _over_rows(self, curve: str, days: int, sizes: tuple[int, ...]) -> list[Step]:
        """Return the steps that fill the table up to each size, and measure there."""

        def fill_up(size: int) -> Step:
            async def step() -> None:
                async with self._bench.environment.connected() as connection:
                    await fill(connection, max(0, size - await self._bench.rows()), days)

            return f"filling up to {size:,} {curve}", step

        steps: list[Step] = [("clearing", self._bench.clear)]
        for size in sizes:
            steps += [fill_up(size)] if size else []
            steps += [self._warm_up(1)]
            steps += [self._peak(curve, size, keep=size > 0)] * self._schedule.rounds
        return steps

    def _remember(self, events: int) -> Step:
        async def step() -> None:
            await self._bench.clear()
            _, before = await self._bench.remembered()
            await self._bench.peak(self._started[1], events / self._rate)
            keys, after = await self._bench.remembered()
            self.curves.redis_bytes[keys] = after - before

        return f"{events:,} events in Redis", step

    async def _weigh(self) -> None:
        self.curves.table = (
            await self._bench.table_bytes()
        )  # after the step for Redis, which has filled it


def add_command(commands: Commands) -> None:
    """Add `curves` to the commands of the bench."""
    text = "latency, throughput and cost over rate, connections, table size, duplicates, workers"
    parser = commands.add_parser("curves", help=text, description=text)
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: every curve, with few points"
    )
    add_options(parser)
    documents.add_option(parser)
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    schedule = QUICK_CURVES if arguments.quick else CurvesSchedule()
    began = datetime.now(UTC)
    curves, machine = await run(schedule, arguments.folder)
    results = curves_report.CurvesResults(
        began=began, ended=datetime.now(UTC), machine=machine, schedule=schedule, curves=curves
    )
    text = markdown_table(curves_report.HEADINGS, curves_report.rows(curves))
    print(text, *curves.problems(), sep="\n")
    print(f"report: {curves_report.write(results, arguments.results)}")
    documents.write(arguments, "curves", machine, text)
    return 1 if curves.problems() else 0
