"""`faults`: callbacks and faults by the same seed, and what became of every callback."""

import argparse
import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from bench.faults.faults import FAULTS, NEW_DAY
from bench.faults.ledger import Ledger, Told
from bench.faults.oracle import Verdict, judge
from bench.faults.schedule import Plan, Strike, make_plan
from bench.faults.stories import POISON_RULES, SHARES, Plot
from bench.testbed.environment import Stage, open_stage
from bench.testbed.gateway import SERVE, BenchError
from bench.testbed.report import Progress, print_table
from bench.testbed.vendor import Vendor

# By the issue of the promise: a fresh callback succeeds within this time of the end of a fault.
RECOVERY_MAX_S = 10.0
_PROBE_S = 0.05
# Enough to see what went wrong.
OFFENDERS_MAX = 10


@dataclass
class Result:
    """What a run has shown."""

    plan: Plan
    ledger: Ledger
    verdict: Verdict
    duration_s: float
    recovery_s: dict[str, list[float]] = field(default_factory=dict)
    stuck: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether nothing was lost, doubled, lied about or stuck."""
        return self.verdict.is_clean and not self.stuck

    @property
    def strikes(self) -> Counter[str]:
        """How often each fault has struck."""
        return Counter({name: len(times) for name, times in self.recovery_s.items()})


async def run(
    plan: Plan,
    progress: Progress,
    *,
    folder: Path | None = None,
    arguments: Sequence[str] = SERVE,
    statements: Sequence[str] = (),
) -> Result:
    """Carry a plan out against real processes; raises EmbeddedError and BenchError."""
    started = time.monotonic()
    async with open_stage(
        folder=folder,
        gateways=plan.gateways,
        arguments=arguments,
        statements=(*POISON_RULES, *statements),
    ) as stage:
        vendor = Vendor(plan.author, [gateway.port for gateway in stage.gateways], plan.rate)
        trial = _Trial(plan, stage, vendor, progress)
        try:
            await trial.run()
        finally:
            await vendor.close()
        progress.say("comparing ledger and table")
        connection = await stage.connect()
        verdict = await judge(connection, plan.author, vendor.ledger, plan.callbacks + trial.probes)
        await connection.close()
    return Result(
        plan, vendor.ledger, verdict, time.monotonic() - started, trial.recovery_s, trial.stuck
    )


class _Trial:
    def __init__(self, plan: Plan, stage: Stage, vendor: Vendor, progress: Progress) -> None:
        self.probes = 0
        self.recovery_s: dict[str, list[float]] = {}
        self.stuck: list[str] = []
        self._plan = plan
        self._stage = stage
        self._vendor = vendor
        self._progress = progress
        self._author = plan.author

    async def run(self) -> None:
        """Send everything, with each strike at its point, and wait until it has its answers."""
        strike: asyncio.Task[None] | None = None
        watch = asyncio.create_task(self._watch())
        try:
            for next_strike in self._plan.strikes:
                await self._vendor.send(next_strike.at)
                if strike is not None:
                    await strike
                if next_strike.fault in NEW_DAY:
                    await self._expect_no_chunk(next_strike)
                strike = asyncio.create_task(self._strike(next_strike))
            await self._vendor.send(self._plan.callbacks)
            if strike is not None:
                await strike
            self._progress.say("waiting for the last retries")
            await self._vendor.finish()
            for number in await self._vendor.insist():
                self.stuck.append(f"callback {number} is never answered for good")
        finally:
            for task in (watch, *([strike] if strike is not None else ())):
                task.cancel()
            await asyncio.gather(watch, *([strike] if strike else ()), return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            self._progress.show(self._vendor.begun)
            await asyncio.sleep(0.5)

    async def _strike(self, strike: Strike) -> None:
        gateway = self._stage.gateways[strike.gateway]
        random = Random(f"{self._plan.seed} {strike.at}")  # noqa: S311 - repeatable is wanted
        self._progress.say(strike.fault)
        try:
            await FAULTS[strike.fault](self._stage, gateway, random)
        except TimeoutError:
            raise BenchError(f"{strike.fault}: no COPY came to strike at") from None
        over = time.monotonic()
        numbers = range(len(self._stage.gateways))
        recovered = await asyncio.gather(*(self._recovers(number, over) for number in numbers))
        for number in numbers:
            if not recovered[number]:
                self.stuck.append(f"{strike.fault} at {strike.at}: gateway {number}")
        self.recovery_s.setdefault(strike.fault, []).append(time.monotonic() - over)
        for number, gateway in enumerate(self._stage.gateways):
            if gateway.exit_code is not None:
                raise BenchError(f"gateway {number} has ended by itself, see {gateway.log}")

    async def _recovers(self, gateway: int, over: float) -> bool:
        """Whether a fresh callback succeeds in time."""
        while time.monotonic() - over < RECOVERY_MAX_S:
            number = self._plan.callbacks + self.probes
            self.probes += 1
            told = await self._vendor.deliver_once(self._author.write(number), gateway)
            if told.is_final:
                return time.monotonic() - over < RECOVERY_MAX_S
            await asyncio.sleep(_PROBE_S)
        return False

    async def _expect_no_chunk(self, strike: Strike) -> None:
        """Raise BenchError where a fault would find the chunk that it wants to be missing."""
        day = self._author.day(strike.at)
        if self._stage.servers.has_timescaledb and await self._stage.has_chunk(day):
            raise BenchError(f"{strike.fault}: there is a chunk for {day:%Y-%m-%d} already")


def add_command(commands: Any) -> None:
    """Add `faults` to the commands of the bench."""
    text = "callbacks and faults by one seed, and what became of every callback"
    parser = commands.add_parser("faults", help=text, description=text)
    parser.add_argument(
        "--callbacks", type=int, default=1_000_000, help="callbacks to send, not counting repeats"
    )
    parser.add_argument(
        "--strikes", type=int, default=len(FAULTS) * 8, help="faults, of all kinds in turn"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed is the same run")
    parser.add_argument("--rate", type=float, default=700, help="callbacks a second at most")
    parser.add_argument("--gateways", type=int, default=2, help="gateway processes")
    parser.add_argument(
        "--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT",
        help="of these kinds alone: " + ", ".join(FAULTS),
    )  # fmt: skip
    parser.add_argument(
        "--share", type=_share, action="append", default=[], metavar="KIND=PERMILLE",
        help="of the callbacks; the defaults: "
        + ", ".join(f"{plot.value}={share}" for plot, share in SHARES.items()),
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    parser.set_defaults(run=_command)


def _share(text: str) -> tuple[Plot, int]:
    kind, _, permille = text.partition("=")
    try:
        return Plot(kind), int(permille)
    except ValueError:
        known = ", ".join(plot.value for plot in Plot)
        raise argparse.ArgumentTypeError(f"{text!r}: not KIND=NUMBER with one of {known}") from None


async def _command(arguments: argparse.Namespace) -> int:
    plan = make_plan(
        seed=arguments.seed,
        callbacks=arguments.callbacks,
        strikes=arguments.strikes,
        rate=arguments.rate,
        kinds=arguments.only,
        gateways=arguments.gateways,
        shares=SHARES | dict(arguments.share),
    )
    with Progress(plan.callbacks, "callbacks") as progress:
        result = await run(plan, progress, folder=arguments.folder)
    print_result(result)
    return 0 if result.is_clean else 1


def print_result(result: Result) -> None:
    """Print one table of what was sent, answered and struck, and of what did not hold."""
    ledger, verdict, tally = result.ledger, result.verdict, result.ledger.tally()
    run = {
        "seed": str(result.plan.seed),
        "minutes": result.duration_s / 60,
        "callbacks": result.plan.callbacks,
        "sent, with repeats of a callback": ledger.callbacks,
        "sent, with retries": len(ledger),
        "given up after the last retry": len(ledger.given_up),
        "rows": verdict.rows,
    }
    broken = {
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "lied": verdict.lied,
        "stuck": result.stuck,
    }
    print_table(
        ("", "", "number", "slowest recovery, s"),
        [
            *(("run", name, number, "") for name, number in run.items()),
            *(("answer", told.value, tally[told], "") for told in Told),
            *(
                ("fault", name, len(times), max(times))
                for name, times in sorted(result.recovery_s.items())
            ),
            *(("verdict", name, len(stories), "") for name, stories in broken.items()),
        ],
    )
    for name in ("lost", "doubled", "lied"):
        for number, why in list(getattr(verdict, name).items())[:OFFENDERS_MAX]:
            print(f"{name}: callback {number}: {why}")
            for entry in ledger.of(number):
                print(f"    {entry.answered_at:.3f} {entry.told.value}")
    for where in result.stuck:
        print(f"stuck: {where}")
