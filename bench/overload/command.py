"""`overload`: ten times what a slow sink takes, and what becomes of callers, memory and goodput."""

import argparse
import asyncio
import resource
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

import msgspec

from bench.overload.verdict import BIG, SMALL, Limits, Measured, Promise, Sample, judge
from bench.testbed.callbacks import SECRET, parameters
from bench.testbed.caller import Answer, Caller
from bench.testbed.callers import Crowd
from bench.testbed.environment import Stage, open_stage
from bench.testbed.report import Progress, print_table

SMALL_RATE = 20.0
LIGHT_RATE = 40.0
SAMPLE_S = 0.5
PATIENCE_S = 60.0
# As an operator would have them; those of the stage are for faults.
SETTINGS = {"COMMIT_TIMEOUT_S": "5", "CLAIM_LEASE_S": "15"}
FILES = 20_000
# To begin with: a commit waits for the server twice, and a batch of 64 KB is some 150 events.
DELAY_S = 0.15
LARGE_BATCH = 160
TUNING_TURNS = 3
# So many batches' callers keep a sink busy that takes one at a time, and none of them is refused.
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

    `capacity` is what the sink is slowed down to. Needs an open file for each place in the
    buffer, here and in the gateway.
    """
    _allow_files()
    settings = SETTINGS | {
        "BUFFER_MAX_EVENTS": str(buffer_max),
        "BATCH_MAX_EVENTS": str(batch_max),
    }
    measured = Measured(offered, buffer_max)
    async with open_stage(folder=folder, gateways=1, settings=settings) as stage:
        callers = int(BATCHES * min(batch_max, LARGE_BATCH))
        experiment = _Experiment(stage, measured, progress, callers)
        try:
            await experiment.tune(capacity, duration_s / 12)
            await experiment.run(duration_s)
            await experiment.close_the_books()
        finally:
            experiment.crowd.close()
    return measured


class _Experiment:
    def __init__(self, stage: Stage, measured: Measured, progress: Progress, callers: int) -> None:
        self._stage = stage
        self._gateway = stage.gateways[0]
        self._measured = measured
        self._progress = progress
        self._callers = callers
        self._templates = {BIG: _template("shop4ndroid1"), SMALL: _template("game4ndroid1")}
        self._small_each = 2
        self.crowd = Crowd(self._gateway.port, self._request)

    def _request(self, number: int) -> tuple[str, bytes]:
        workspace = BIG if number % self._small_each else SMALL
        return workspace, self._templates[workspace] % number

    async def tune(self, capacity: float, duration_s: float) -> None:
        """Find the delay that slows the sink down to this many events a second."""
        delay_s = DELAY_S
        for turn in range(TUNING_TURNS):
            self._progress.say(f"tuning the sink: {1000 * delay_s:.0f} ms")
            self._gateway.database.delay_s = self._measured.delay_s = delay_s
            record = await self.crowd.keep_busy(self._callers, duration_s)
            await self.crowd.finish(PATIENCE_S)
            if turn + 1 < TUNING_TURNS:
                delay_s *= record.goodput / capacity

    async def run(self, duration_s: float) -> None:
        """Go through the phases."""
        offered = self._measured.offered
        light_s = duration_s / 6
        async with self._phase("before", LIGHT_RATE) as crowd:
            await crowd.offer(LIGHT_RATE, light_s)
        async with self._phase("saturated", LIGHT_RATE) as crowd:
            await crowd.keep_busy(self._callers, duration_s / 3)
        async with self._phase("overload", offered) as crowd:
            await crowd.offer(offered, duration_s)
        async with self._phase("afterwards", LIGHT_RATE) as crowd:
            await crowd.offer(LIGHT_RATE, light_s)

    @asynccontextmanager
    async def _phase(self, name: str, rate: float) -> AsyncIterator[Crowd]:
        self._progress.say(name)
        self._small_each = max(2, round(rate / SMALL_RATE))
        samples = self._measured.samples[name] = []
        sampling = asyncio.create_task(self._sample(samples))
        try:
            yield self.crowd
        finally:
            sampling.cancel()
            with suppress(asyncio.CancelledError):
                await sampling
        await self.crowd.finish(PATIENCE_S)
        self._measured.phases[name] = self.crowd.records[-1]

    async def _sample(self, samples: list[Sample]) -> None:
        while True:
            probe = await self._get("/healthz")
            waited_s = probe.answered_at - probe.sent_at if probe.status else PATIENCE_S
            samples.append(Sample(self._gateway.memory_bytes(), waited_s))
            await asyncio.sleep(SAMPLE_S)

    async def close_the_books(self) -> None:
        """Ask gateway and database what they have counted."""
        measured = self._measured
        ready = msgspec.json.decode((await self._get("/readyz")).body)
        measured.left_in_buffer = ready["buffer"]["events"]
        text = (await self._get("/metrics")).body.decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        measured.metrics = {series: float(value) for series, _, value in lines}
        for record in self.crowd.records:
            for (_, told), latencies in record.latencies.items():
                measured.told[told] += len(latencies)
        connection = await self._stage.connect()
        measured.rows = await connection.fetchval("SELECT count(*) FROM events")
        await connection.close()

    async def _get(self, path: str) -> Answer:
        caller = Caller(self._gateway.port)
        request = f"GET {path} HTTP/1.1\r\nHost: bench\r\n\r\n"
        try:
            return await caller.send(request.encode(), PATIENCE_S)
        finally:
            caller.close()


def _allow_files() -> None:
    """Let this process and the gateway have a connection for each callback that waits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _template(app: str) -> bytes:
    """Return a request with a place for the number of its user."""
    random = Random(1)  # noqa: S311 - repeatable is wanted
    now = str(int(datetime.now(UTC).timestamp()))
    sent = {"secret": SECRET} | parameters(0, app, "g3mz3t", random) | {"created_at": now}
    query = urlencode(sent).replace("%", "%%").replace("user_id=u0", "user_id=u%d")
    return f"GET /ingest/adjust?{query} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()


def add_command(commands: Any) -> None:
    """Add `overload` to the commands of the bench."""
    text = "ten times what a slow sink takes, and what becomes of callers, memory and goodput"
    parser = commands.add_parser("overload", help=text, description=text)
    parser.add_argument("--duration", type=float, default=60, help="seconds of overload")
    parser.add_argument("--offered", type=float, default=5_000, help="callbacks a second")
    parser.add_argument("--capacity", type=float, default=500, help="what the sink takes a second")
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
    claims = judge(measured, Limits())
    print_verdict(measured, claims)
    return 0 if all(claim.holds for claim in claims) else 1


def print_verdict(measured: Measured, claims: Sequence[Promise]) -> None:
    """Print every promise, with what was measured."""
    print(f"The answers of the database were delayed by {1000 * measured.delay_s:.0f} ms each.")
    print_table(
        ("promise", "target", "measured", "verdict"),
        [
            (claim.name, claim.target, claim.measured, "ok" if claim.holds else "MISSED")
            for claim in claims
        ],
    )
