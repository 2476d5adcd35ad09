"""`curves`: how the gateway behaves over rate, connections, table size, duplicates and workers."""

import argparse
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

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
from bench.testbed.environment import open_stage
from bench.testbed.load import Mix
from bench.testbed.machine import Machine, look_at_machine
from bench.testbed.processes import peak_memory_bytes
from bench.testbed.report import Progress, print_table
from bench.testbed.results import add_options

Step = tuple[str, Callable[[], Awaitable[None]]]


class Plan(msgspec.Struct, frozen=True):
    """Where the points of each curve are, how long and how often each is measured."""

    rounds: int = 3
    warm_up_s: float = 3
    peak_s: float = 4
    latency_s: float = 8
    latency_warm_up_s: float = 2
    rates: tuple[int, ...] = (
        250, 500, 1_000, 2_000, 3_000, 4_000, 5_000, 6_000, 7_000, 8_000, 10_000,
    )  # fmt: skip
    connections: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
    duplicates: tuple[int, ...] = (0, 25, 50, 75, 95)
    workers: tuple[int, ...] = (1, 2)
    rows: tuple[int, ...] = (0, 300_000, 1_000_000, 3_000_000, 10_000_000)
    days: int = 30
    remembered: tuple[int, ...] = (10_000, 50_000, 200_000, 500_000)
    is_quick: bool = False


# For tests: everything happens, and no figure means much.
QUICK = Plan(
    rounds=1,
    warm_up_s=1,
    peak_s=1,
    latency_s=1,
    latency_warm_up_s=0,
    rates=(200, 400),
    connections=(1, 32),
    duplicates=(50,),
    rows=(0, 60_000),
    days=3,
    remembered=(3_000,),
    is_quick=True,
)


async def run(plan: Plan, folder: Path | None = None) -> tuple[Curves, Machine]:
    """Measure every curve; raises EmbeddedError and BenchError."""
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(open_stage(folder=folder, gateways=0))
        bench = Bench(stage)
        started = {}
        for number in plan.workers:
            gateway = contenders.GATEWAY
            running = await stack.enter_async_context(
                bench.start(gateway, {"WORKERS": str(number)})
            )
            started[number] = running
        measuring = _Measuring(bench, plan, started)
        measuring.curves.idle_bytes = peak_memory_bytes(started[1].process.pid)
        progress = stack.enter_context(Progress(len(measuring.steps()), "steps"))
        for number, (name, step) in enumerate(measuring.steps()):
            progress.show(number)
            progress.say(name)
            await step()
        return measuring.curves, look_at_machine(stage.servers.description)


class _Measuring:
    def __init__(self, bench: Bench, plan: Plan, started: Mapping[int, Running]) -> None:
        self.curves = Curves()
        self._bench = bench
        self._plan = plan
        self._started = started  # by the number of workers
        self._rate = 0.0

    def steps(self) -> list[Step]:
        """Return all that is to be done, in order: in each round every point of a curve in turn."""
        plan = self._plan
        groups: list[list[Step]] = [
            [self._latency(rate) for rate in plan.rates],
            [self._peak(CONNECTIONS, number, connections=number) for number in plan.connections],
            [
                self._peak(DUPLICATES, percent, mix=Mix(duplicates=percent / 100))
                for percent in plan.duplicates
            ],
            [self._peak(WORKERS, number, workers=number) for number in plan.workers],
        ]
        times = range(plan.rounds)
        return [
            *(self._warm_up(workers) for workers in plan.workers),
            # There and back: whatever comes first in one round comes last in the next.
            *(
                step
                for group in groups
                for turn in times
                for step in group[:: -1 if turn % 2 else 1]
            ),
            *(self._remember(number) for number in plan.remembered),
            ("bytes of a row", self._weigh),
            *self._over_rows(ONE_CHUNK, 1, plan.rows),
            # Few rows are in few chunks, or none.
            *self._over_rows(SEVERAL_CHUNKS, plan.days, plan.rows[-2:]),
        ]

    def _warm_up(self, workers: int) -> Step:
        async def step() -> None:
            await self._bench.peak(self._started[workers], self._plan.warm_up_s)

        return "warm-up", step

    def _latency(self, rate: int) -> Step:
        async def step() -> None:
            await self._bench.clear()
            round_ = await self._bench.latency(
                self._started[1],
                rate,
                self._plan.latency_s,
                warm_up_s=self._plan.latency_warm_up_s,
                may_refuse=True,
            )
            self.curves.latencies.setdefault(rate, []).append(round_)

        return f"{rate:,}/s", step

    def _peak(
        self, curve: str, point: int, *, workers: int = 1, keep: bool = False, **load: Any
    ) -> Step:
        async def step() -> None:
            if not keep:
                await self._bench.clear()
            running = self._started[workers]
            round_ = await self._bench.peak(running, self._plan.peak_s, **load)
            self.curves.peaks.setdefault(curve, {}).setdefault(point, []).append(round_)
            self._rate = round_.rate

        return f"{point:,} {curve}", step

    def _over_rows(self, curve: str, days: int, sizes: tuple[int, ...]) -> list[Step]:
        """Return the steps that fill the table up to each size, and measure there."""

        def fill_up(size: int) -> Step:
            async def step() -> None:
                connection = await self._bench.stage.connect()
                try:
                    await fill(connection, max(0, size - await self._bench.rows()), days)
                finally:
                    await connection.close()

            return f"filling up to {size:,} {curve}", step

        steps: list[Step] = [("clearing", self._bench.clear)]
        for size in sizes:
            steps += [fill_up(size)] if size else []
            steps += [self._warm_up(1)]
            steps += [self._peak(curve, size, keep=size > 0)] * self._plan.rounds
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
        self.curves.table = await self._bench.table_bytes()  # of those that Redis remembers


def add_command(commands: Any) -> None:
    """Add `curves` to the commands of the bench."""
    text = "latency, throughput and cost over rate, connections, table size, duplicates, workers"
    parser = commands.add_parser("curves", help=text, description=text)
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: every curve, with points to spare"
    )
    add_options(parser)
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    plan = QUICK if arguments.quick else Plan()
    began = datetime.now(UTC)
    curves, machine = await run(plan, arguments.folder)
    report = curves_report.Report(
        began=began, ended=datetime.now(UTC), machine=machine, plan=plan, curves=curves
    )
    print_table(curves_report.HEADINGS, curves_report.rows(curves))
    for problem in curves.problems():
        print(problem)
    print(f"report: {curves_report.write(report, arguments.results)}")
    return 1 if curves.problems() else 0
