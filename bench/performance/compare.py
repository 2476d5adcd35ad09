"""`compare`: the gateway beside floors and peers, on this machine, in one run."""

import argparse
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench import contenders
from bench.performance import compare_report
from bench.performance.fill import fill
from bench.performance.measure import Bench, Running
from bench.performance.schedules import QUICK_COMPARE, CompareSchedule
from bench.performance.targets import (
    AFTERNOON,
    AFTERNOON_80,
    AFTERNOON_1000,
    APPSFLYER,
    AT_200,
    AT_1000,
    DROPS,
    DUPLICATES,
    EMPTY,
    FLOOR,
    FULL,
    GATEWAY,
    GATEWAY_80,
    Rounds,
    judge_all,
)
from bench.testbed import documents
from bench.testbed.console import Progress, markdown_table
from bench.testbed.environment import open_environment
from bench.testbed.figures import median_of
from bench.testbed.load import FRESH, Mix
from bench.testbed.machine import Machine, describe_machine
from bench.testbed.results import Commands, add_options

HALF_DUPLICATES = Mix(duplicates=0.5)
UNMAPPED = Mix(unmapped=1)
MESSAGES = Mix(vendor="appsflyer")
# Every drop has a place in quarantine.
PLACE = {"QUARANTINE_MAX_MB": "1000000"}
SHARE_OF_PEAK = 0.8
SIDE_BY_SIDE = (contenders.GATEWAY, contenders.FLOOR, contenders.AFTERNOON)

Step = tuple[str, Callable[[], Awaitable[None]]]


async def run(schedule: CompareSchedule, folder: Path | None = None) -> tuple[Rounds, Machine]:
    """Measure everything; raises EmbeddedError and BenchError."""
    async with AsyncExitStack() as stack:
        environment = await stack.enter_async_context(open_environment(folder=folder, gateways=0))
        bench = Bench(environment)
        comparison = _Comparison(bench, schedule)
        progress = stack.enter_context(Progress(len(comparison.steps()) + 1, "steps"))
        progress.step("pool of the afternoon version")
        await comparison.tune()
        for contender in SIDE_BY_SIDE:
            settings = PLACE | {"POOL_SIZE": str(comparison.rounds.pool_size)}
            running = await stack.enter_async_context(bench.start(contender, settings))
            comparison.started[contender] = running
        for number, (name, step) in enumerate(comparison.steps(), 1):
            progress.show(number)
            progress.step(name)
            await step()
        return comparison.rounds, describe_machine(environment.servers.description)


class _Comparison:
    def __init__(self, bench: Bench, schedule: CompareSchedule) -> None:
        self.rounds = Rounds()
        self.started: dict[contenders.Contender, Running] = {}
        self._bench = bench
        self._schedule = schedule

    async def tune(self) -> None:
        """Find the pool size of the afternoon version with the highest rate on this machine."""
        async with AsyncExitStack() as stack:
            started = {
                size: await stack.enter_async_context(
                    self._bench.start(contenders.AFTERNOON, {"POOL_SIZE": str(size)})
                )
                for size in self._schedule.pool_sizes
            }
            for turn in range(self._schedule.tuning_rounds + 1):
                for size, running in started.items():
                    round_ = await self._bench.peak(running, self._schedule.tuning_s)
                    if turn:  # the first one warms up
                        self.rounds.pool_rates.setdefault(size, []).append(round_.rate)

    def steps(self) -> list[Step]:
        """Return all steps in order: in each round every contender in turn."""
        peaks: list[Step] = [
            self._peak(FLOOR, contenders.FLOOR),
            self._peak(GATEWAY, contenders.GATEWAY),
            self._peak(AFTERNOON, contenders.AFTERNOON),
            self._peak(DUPLICATES, contenders.GATEWAY, HALF_DUPLICATES),
            self._peak(DROPS, contenders.GATEWAY, UNMAPPED),
            self._peak(APPSFLYER, contenders.GATEWAY, MESSAGES),
        ]
        latencies: list[Step] = [
            self._latency(AT_1000, contenders.GATEWAY, lambda: 1_000),
            self._latency(AFTERNOON_1000, contenders.AFTERNOON, lambda: 1_000),
            self._latency(AFTERNOON_80, contenders.AFTERNOON, self._rate_80),
            self._latency(GATEWAY_80, contenders.GATEWAY, self._rate_80),
            ("durable floor at 200/s", self._durable_floor),
            self._latency(AT_200, contenders.GATEWAY, lambda: 200),
        ]
        times = range(self._schedule.rounds)
        return [
            *map(self._warm_up, SIDE_BY_SIDE),
            # Back and forth: the first contender of one round is the last of the next.
            *(step for turn in times for step in peaks[:: -1 if turn % 2 else 1]),
            *(step for turn in times for step in latencies[:: -1 if turn % 2 else 1]),
            ("memory of Redis", self._remember),
            *(self._peak(EMPTY, contenders.GATEWAY) for _ in times),
            (f"{self._schedule.filled_rows:,} rows", self._fill),
            self._warm_up(contenders.GATEWAY),
            *(self._peak(FULL, contenders.GATEWAY, keep=True) for _ in times),
        ]

    def _warm_up(self, contender: contenders.Contender) -> Step:
        async def step() -> None:
            await self._bench.peak(self.started[contender], self._schedule.warm_up_s)

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
            round_ = await self._bench.peak(running, self._schedule.peak_s, mix=mix)
            self.rounds.peaks.setdefault(name, []).append(round_)

        return f"peak: {name}", step

    def _latency(
        self, name: str, contender: contenders.Contender, rate: Callable[[], float]
    ) -> Step:
        async def step() -> None:
            await self._bench.clear()
            running = self.started[contender]
            round_ = await self._bench.latency(
                running,
                rate(),
                self._schedule.latency_s,
                warm_up_s=self._schedule.latency_warm_up_s,
            )
            self.rounds.latencies.setdefault(name, []).append(round_)

        return name, step

    def _rate_80(self) -> float:
        peaks = self.rounds.peaks[AFTERNOON]
        return SHARE_OF_PEAK * median_of(round_.rate for round_ in peaks)

    async def _durable_floor(self) -> None:
        await self._bench.clear()
        taken = await self._bench.durable_floor(200, self._schedule.latency_s)
        self.rounds.durable_floor.append(taken)

    async def _remember(self) -> None:
        await self._bench.clear()
        _, before = await self._bench.remembered()
        rate = median_of(round_.rate for round_ in self.rounds.peaks[GATEWAY])
        running = self.started[contenders.GATEWAY]
        await self._bench.peak(running, self._schedule.remembered / rate)
        keys, after = await self._bench.remembered()
        self.rounds.redis_keys, self.rounds.redis_bytes = keys, after - before

    async def _fill(self) -> None:
        await self._bench.clear()
        async with self._bench.environment.connected() as connection:
            await fill(connection, self._schedule.filled_rows)
        self.rounds.filled_rows = await self._bench.rows()


def add_command(commands: Commands) -> None:
    """Add `compare` to the commands of the bench."""
    text = "the gateway beside floors and peers, against its targets"
    parser = commands.add_parser("compare", help=text, description=text)
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: every step, without a verdict"
    )
    add_options(parser)
    documents.add_option(parser)
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    schedule = QUICK_COMPARE if arguments.quick else CompareSchedule()
    began = datetime.now(UTC)
    rounds, machine = await run(schedule, arguments.folder)
    verdicts = judge_all(rounds)
    results = compare_report.CompareResults(
        began=began,
        ended=datetime.now(UTC),
        machine=machine,
        schedule=schedule,
        rounds=rounds,
        verdicts=verdicts,
    )
    text = markdown_table(compare_report.HEADINGS, compare_report.rows(results))
    print(text, *rounds.problems(), sep="\n")
    print(f"report: {compare_report.write(results, arguments.results)}")
    documents.write(arguments, "compare", machine, text)
    judged = verdicts if schedule.is_judged else verdicts[-1:]
    return 0 if all(verdict.holds for verdict in judged) else 1
