"""`compare`: the gateway beside floors and peers, on this machine, in one run."""

import argparse
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench import contenders
from bench.performance import compare_report
from bench.performance.fill import fill
from bench.performance.measure import Bench, Running
from bench.performance.targets import (
    AFTERNOON,
    AFTERNOON_80,
    AFTERNOON_1000,
    AT_200,
    AT_1000,
    DUPLICATES,
    EMPTY,
    FLOOR,
    FULL,
    GATEWAY,
    GATEWAY_80,
    Rounds,
    judge_all,
    median_of,
)
from bench.testbed.environment import open_stage
from bench.testbed.load import FRESH, Mix
from bench.testbed.machine import Machine, look_at_machine
from bench.testbed.report import Progress, print_table
from bench.testbed.results import add_options

HALF_DUPLICATES = Mix(duplicates=0.5)
SHARE_OF_PEAK = 0.8
SIDE_BY_SIDE = (contenders.GATEWAY, contenders.FLOOR, contenders.AFTERNOON)

Step = tuple[str, Callable[[], Awaitable[None]]]


class Plan(msgspec.Struct, frozen=True):
    """How long and how often everything is measured."""

    rounds: int = 3
    warm_up_s: float = 3
    peak_s: float = 6
    latency_s: float = 10
    latency_warm_up_s: float = 2
    filled_rows: int = 10_000_000
    remembered: int = 200_000
    pool_sizes: tuple[int, ...] = (2, 4, 8, 16, 32)
    tuning_rounds: int = 3
    tuning_s: float = 1
    is_judged: bool = True


# For tests: everything happens, and no figure means much.
QUICK = Plan(
    rounds=1,
    warm_up_s=1,
    peak_s=1,
    latency_s=1,
    latency_warm_up_s=0,
    filled_rows=20_000,
    remembered=3_000,
    pool_sizes=(4,),
    tuning_rounds=1,
    is_judged=False,
)


async def run(plan: Plan, folder: Path | None = None) -> tuple[Rounds, Machine]:
    """Measure everything; raises EmbeddedError and BenchError."""
    async with AsyncExitStack() as stack:
        stage = await stack.enter_async_context(open_stage(folder=folder, gateways=0))
        bench = Bench(stage)
        comparison = _Comparison(bench, plan)
        progress = stack.enter_context(Progress(len(comparison.steps()) + 1, "steps"))
        progress.say("pool of the afternoon version")
        await comparison.tune()
        for contender in SIDE_BY_SIDE:
            settings = {"POOL_SIZE": str(comparison.rounds.pool_size)}
            running = await stack.enter_async_context(bench.start(contender, settings))
            comparison.started[contender] = running
        for number, (name, step) in enumerate(comparison.steps(), 1):
            progress.show(number)
            progress.say(name)
            await step()
        return comparison.rounds, look_at_machine(stage.servers.description)


class _Comparison:
    def __init__(self, bench: Bench, plan: Plan) -> None:
        self.rounds = Rounds()
        self.started: dict[contenders.Contender, Running] = {}
        self._bench = bench
        self._plan = plan

    async def tune(self) -> None:
        """Find the size of pool with which the afternoon version takes most on this machine."""
        async with AsyncExitStack() as stack:
            started = {
                size: await stack.enter_async_context(
                    self._bench.start(contenders.AFTERNOON, {"POOL_SIZE": str(size)})
                )
                for size in self._plan.pool_sizes
            }
            for turn in range(self._plan.tuning_rounds + 1):
                for size, running in started.items():
                    round_ = await self._bench.peak(running, self._plan.tuning_s)
                    if turn:  # the first one warms up
                        self.rounds.pool_rates.setdefault(size, []).append(round_.rate)

    def steps(self) -> list[Step]:
        """Return all that is to be done, in order: in each round every contender in turn."""
        peaks: list[Step] = [
            self._peak(FLOOR, contenders.FLOOR),
            self._peak(GATEWAY, contenders.GATEWAY),
            self._peak(AFTERNOON, contenders.AFTERNOON),
            self._peak(DUPLICATES, contenders.GATEWAY, HALF_DUPLICATES),
        ]
        latencies: list[Step] = [
            self._latency(AT_1000, contenders.GATEWAY, lambda: 1_000),
            self._latency(AFTERNOON_1000, contenders.AFTERNOON, lambda: 1_000),
            self._latency(AFTERNOON_80, contenders.AFTERNOON, self._rate_80),
            self._latency(GATEWAY_80, contenders.GATEWAY, self._rate_80),
            ("durable floor at 200/s", self._durable_floor),
            self._latency(AT_200, contenders.GATEWAY, lambda: 200),
        ]
        times = range(self._plan.rounds)
        return [
            *map(self._warm_up, SIDE_BY_SIDE),
            # There and back: whoever comes first in one round comes last in the next.
            *(step for turn in times for step in peaks[:: -1 if turn % 2 else 1]),
            *(step for turn in times for step in latencies[:: -1 if turn % 2 else 1]),
            ("memory of Redis", self._remember),
            *(self._peak(EMPTY, contenders.GATEWAY) for _ in times),
            (f"{self._plan.filled_rows:,} rows", self._fill),
            self._warm_up(contenders.GATEWAY),
            *(self._peak(FULL, contenders.GATEWAY, keep=True) for _ in times),
        ]

    def _warm_up(self, contender: contenders.Contender) -> Step:
        async def step() -> None:
            await self._bench.peak(self.started[contender], self._plan.warm_up_s)

        return f"warm-up: {contender.name}", step

    def _peak(
        self,
        name: str,
        contender: contenders.Contender,
        mix: Mix = FRESH,
        *,
        keep: bool = False,
    ) -> Step:
        async def step() -> None:
            if not keep:
                await self._bench.clear()
            running = self.started[contender]
            round_ = await self._bench.peak(running, self._plan.peak_s, mix=mix)
            self.rounds.peaks.setdefault(name, []).append(round_)

        return f"peak: {name}", step

    def _latency(
        self, name: str, contender: contenders.Contender, rate: Callable[[], float]
    ) -> Step:
        async def step() -> None:
            await self._bench.clear()
            running = self.started[contender]
            round_ = await self._bench.latency(
                running, rate(), self._plan.latency_s, warm_up_s=self._plan.latency_warm_up_s
            )
            self.rounds.latencies.setdefault(name, []).append(round_)

        return name, step

    def _rate_80(self) -> float:
        peaks = self.rounds.peaks[AFTERNOON]
        return SHARE_OF_PEAK * median_of(round_.rate for round_ in peaks)

    async def _durable_floor(self) -> None:
        await self._bench.clear()
        taken = await self._bench.durable_floor(200, self._plan.latency_s)
        self.rounds.durable_floor.append(taken)

    async def _remember(self) -> None:
        await self._bench.clear()
        _, before = await self._bench.remembered()
        rate = median_of(round_.rate for round_ in self.rounds.peaks[GATEWAY])
        running = self.started[contenders.GATEWAY]
        await self._bench.peak(running, self._plan.remembered / rate)
        keys, after = await self._bench.remembered()
        self.rounds.redis_keys, self.rounds.redis_bytes = keys, after - before

    async def _fill(self) -> None:
        await self._bench.clear()
        connection = await self._bench.stage.connect()
        try:
            await fill(connection, self._plan.filled_rows)
        finally:
            await connection.close()
        self.rounds.filled_rows = await self._bench.rows()


def add_command(commands: Any) -> None:
    """Add `compare` to the commands of the bench."""
    text = "the gateway beside floors and peers, and which targets it meets"
    parser = commands.add_parser("compare", help=text, description=text)
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: everything is tried, nothing judged"
    )
    add_options(parser)
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    plan = QUICK if arguments.quick else Plan()
    began = datetime.now(UTC)
    rounds, machine = await run(plan, arguments.folder)
    verdicts = judge_all(rounds)
    report = compare_report.Report(
        began=began,
        ended=datetime.now(UTC),
        machine=machine,
        plan=plan,
        rounds=rounds,
        verdicts=verdicts,
    )
    print_table(compare_report.HEADINGS, compare_report.rows(report))
    for problem in rounds.problems():
        print(problem)
    print(f"report: {compare_report.write(report, arguments.results)}")
    judged = verdicts if plan.is_judged else verdicts[-1:]
    return 0 if all(verdict.holds for verdict in judged) else 1
