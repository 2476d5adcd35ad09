"""`overload`: ten times the capacity of a slow sink; refusals, waits, memory and goodput."""

import argparse
import asyncio
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random

import msgspec

from bench.overload.verdict import BIG, SMALL, Limits, Measured, Promise, Sample, judge
from bench.testbed.callbacks import get_request, parameters
from bench.testbed.callers import Callers
from bench.testbed.client import Answer, Connection, head, metrics
from bench.testbed.console import Progress, print_table
from bench.testbed.environment import DEFAULT_TIMEOUTS, Environment, open_environment
from bench.testbed.results import Commands

SMALL_RATE = 20.0
LIGHT_RATE = 40.0
SAMPLE_S = 0.5
PATIENCE_S = 60.0
FILES = 20_000
# The first guess: a commit waits for the server twice, and a batch of 64 KB is some 150 events.
DELAY_S = 0.15
LARGE_BATCH = 160
TUNING_TURNS = 3
# The callers of so many batches keep a sink of one batch at a time busy, and none is refused.
BATCHES = 2.5


async def run(
    progress: Progress,
    *,
    duration_s: float = 60.0,
    offered: float = 5_000.0,
    capacity: float = 500.0,
    buffer_max: int = 5_000,
    batch_max: int = 500,
    folder: Path | None = None,
) -> Measured:
    """Overload a gateway of its own; raises EmbeddedError and BenchError.

    `capacity` is the rate of the slowed sink. Needs an open file for each place in the buffer, here
    and in the gateway.
    """
    _allow_files()
    settings = DEFAULT_TIMEOUTS | {
        "BUFFER_MAX_EVENTS": str(buffer_max),
        "BATCH_MAX_EVENTS": str(batch_max),
    }
    measured = Measured(offered, buffer_max)
    async with open_environment(folder=folder, gateways=1, settings=settings) as environment:
        in_flight = int(BATCHES * min(batch_max, LARGE_BATCH))
        experiment = _Experiment(environment, measured, progress, in_flight)
        try:
            await experiment.tune(capacity, duration_s / 12)
            await experiment.run(duration_s)
            await experiment.read_totals()
        finally:
            experiment.callers.close()
    return measured


class _Experiment:
    def __init__(
        self, environment: Environment, measured: Measured, progress: Progress, in_flight: int
    ) -> None:
        self._environment = environment
        self._gateway = environment.gateways[0]
        self._measured = measured
        self._progress = progress
        self._in_flight = in_flight
        self._templates = {BIG: _template("shop4ndroid1"), SMALL: _template("game4ndroid1")}
        self._small_each = 2
        self.callers = Callers(self._gateway.port, self._request)

    def _request(self, number: int) -> tuple[str, bytes]:
        workspace = BIG if number % self._small_each else SMALL
        return workspace, self._templates[workspace] % number

    async def tune(self, capacity: float, duration_s: float) -> None:
        """Find the delay that slows the sink to this many events a second."""
        delay_s = DELAY_S
        for turn in range(TUNING_TURNS):
            self._progress.step(f"tuning the sink: {1000 * delay_s:.0f} ms")
            self._gateway.database.delay_s = self._measured.delay_s = delay_s
            record = await self.callers.keep_busy(self._in_flight, duration_s)
            await self.callers.finish(PATIENCE_S)
            if turn + 1 < TUNING_TURNS:
                delay_s *= record.goodput / capacity

    async def run(self, duration_s: float) -> None:
        """Measure each phase."""
        offered = self._measured.offered
        light_s = duration_s / 6
        async with self._phase("before", LIGHT_RATE) as callers:
            await callers.offer(LIGHT_RATE, light_s)
        async with self._phase("saturated", LIGHT_RATE) as callers:
            await callers.keep_busy(self._in_flight, duration_s / 3)
        async with self._phase("overload", offered) as callers:
            await callers.offer(offered, duration_s)
        async with self._phase("afterwards", LIGHT_RATE) as callers:
            await callers.offer(LIGHT_RATE, light_s)

    @asynccontextmanager
    async def _phase(self, name: str, rate: float) -> AsyncIterator[Callers]:
        self._progress.step(name)
        self._small_each = max(2, round(rate / SMALL_RATE))
        samples = self._measured.samples[name] = []
        sampling = asyncio.create_task(self._sample(samples))
        try:
            yield self.callers
        finally:
            sampling.cancel()
            with suppress(asyncio.CancelledError):
                await sampling
        await self.callers.finish(PATIENCE_S)
        self._measured.phases[name] = self.callers.records[-1]

    async def _sample(self, samples: list[Sample]) -> None:
        while True:
            probe = await self._get("/healthz")
            waited_s = probe.answered_at - probe.sent_at if probe.status else PATIENCE_S
            samples.append(Sample(self._gateway.memory_bytes(), waited_s))
            await asyncio.sleep(SAMPLE_S)

    async def read_totals(self) -> None:
        """Read the totals of gateway and database."""
        measured = self._measured
        ready = msgspec.json.decode((await self._get("/readyz")).body)
        measured.left_in_buffer = ready["buffer"]["events"]
        measured.metrics = await metrics(self._gateway.port)
        for record in self.callers.records:
            for (_, kind), latencies in record.latencies.items():
                measured.answers[kind] += len(latencies)
        async with self._environment.connected() as connection:
            measured.rows = await connection.fetchval("SELECT count(*) FROM events")

    async def _get(self, path: str) -> Answer:
        connection = Connection(self._gateway.port)
        try:
            return await connection.send(head("GET", path), PATIENCE_S)
        finally:
            connection.close()


def _allow_files() -> None:
    """Raise the limit of open files: a connection for each waiting callback."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _template(app: str) -> bytes:
    """Return a request with a place for the number of its user."""
    now = str(int(datetime.now(UTC).timestamp()))
    sent = parameters(0, Random(1), app=app) | {"created_at": now}  # noqa: S311 - repeatable
    return get_request(sent).replace(b"%", b"%%").replace(b"user_id=u0", b"user_id=u%d")


def add_command(commands: Commands) -> None:
    """Add `overload` to the commands of the bench."""
    text = "ten times the capacity of a slow sink; refusals, waits, memory and goodput"
    parser = commands.add_parser("overload", help=text, description=text)
    parser.add_argument("--duration", type=float, default=60, help="seconds of overload")
    parser.add_argument("--offered", type=float, default=5_000, help="callbacks a second")
    parser.add_argument("--capacity", type=float, default=500, help="events a second of the sink")
    parser.add_argument("--buffer", type=int, default=5_000, help="BUFFER_MAX_EVENTS")
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    with Progress(1, "runs") as progress:
        measured = await run(
            progress,
            duration_s=arguments.duration,
            offered=arguments.offered,
            capacity=arguments.capacity,
            buffer_max=arguments.buffer,
            folder=arguments.folder,
        )
    promises = judge(measured, Limits())
    print_verdict(measured, promises)
    return 0 if all(promise.holds for promise in promises) else 1


def print_verdict(measured: Measured, promises: Sequence[Promise]) -> None:
    """Print every promise beside its measured figure."""
    print(f"The answers of the database were delayed by {1000 * measured.delay_s:.0f} ms each.")
    print_table(
        ("promise", "target", "measured", "verdict"),
        [
            (promise.name, promise.target, promise.measured, "ok" if promise.holds else "MISSED")
            for promise in promises
        ],
    )
