"""`neighbours`: small callbacks, alone and beside each way to make them wait, in one run."""

import argparse
import asyncio
import sys
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

import msgspec

from bench.faults.ledger import Told
from bench.neighbours.disturbances import DISTURBANCES, workspaces
from bench.overload.verdict import percentile
from bench.testbed.callbacks import SECRET, parameters
from bench.testbed.caller import Caller
from bench.testbed.callers import Crowd, Record
from bench.testbed.environment import Stage, open_stage
from bench.testbed.gateway import ROOT, SERVE, Process, bound
from bench.testbed.processes import forget_peak_memory, peak_memory_bytes
from bench.testbed.report import Progress, print_table

RATE = 80.0
PATIENCE_S = 60.0
SETTLE_S = 2.0
ALONE = "alone"
# As an operator would have them; those of the stage are for faults.
SETTINGS = {"COMMIT_TIMEOUT_S": "5", "CLAIM_LEASE_S": "15"}
APP = "shop4ndroid1"
P99_MAX_S = 0.04
P99_RATIO_MAX = 6.0
# Nobody waits longer beside these.
LONGEST_S = {"reload": 0.1, "scrape": 0.06}
# A batch may come while the generation is read again. To leave Redis alone for a second costs 80.
BYPASSED_MAX = 0.02
HEADINGS = ("beside", "callbacks", "p50", "p99", "longest", "Redis bypassed", "memory", "verdict")
MIB = 1024 * 1024


class Neighbours(msgspec.Struct, frozen=True):
    """How long callbacks waited beside a disturbance, and what became of them."""

    beside: str
    sent: int
    written: int
    latencies: Sequence[float]
    bypassed: int
    memory_bytes: int

    def misses(self, alone: "Neighbours") -> str:
        """Return what was missed; nothing where all is well."""
        limit = max(P99_MAX_S, P99_RATIO_MAX * percentile(alone.latencies, 0.99))
        longest = LONGEST_S.get(self.beside)
        missed = {
            "not 200": self.written != self.sent,
            "p99": percentile(self.latencies, 0.99) > limit,
            "longest": longest is not None and self.latencies[-1] > longest,
            "Redis": self.bypassed > BYPASSED_MAX * self.sent,
        }
        return ", ".join(name for name, is_missed in missed.items() if is_missed)


async def run(
    progress: Progress, *, names: Sequence[str], duration_s: float, folder: Path | None = None
) -> Sequence[Neighbours]:
    """Measure callbacks alone, and beside each disturbance; raises EmbeddedError and BenchError."""
    measured = []
    async with open_stage(folder=folder, gateways=0) as stage:
        for place, name in enumerate((ALONE, *names)):
            progress.show(place)
            progress.say(name)
            file = stage.folder / f"{name}.toml"
            file.write_text(workspaces(0))
            settings = SETTINGS | {"WORKSPACES_FILE": str(file)}
            async with stage.serve(name, SERVE, settings, "/readyz") as gateway:
                measured.append(await _measure(stage, gateway, name, duration_s, file))
    return measured


async def _measure(
    stage: Stage, gateway: Process, name: str, duration_s: float, file: Path
) -> Neighbours:
    crowd = Crowd(gateway.port, _requests(name))
    try:
        await crowd.offer(RATE, SETTLE_S)  # connections, statements, chunks
        await crowd.finish(PATIENCE_S)
        forget_peak_memory(gateway.pid)
        before = await _bypassed(gateway.port)
        async with _disturbed(stage, gateway, name, file):
            record = await crowd.offer(RATE, duration_s)
            await crowd.finish(PATIENCE_S)
        return Neighbours(
            name,
            record.number(),
            record.number(Told.WRITTEN),
            _all(record),
            int(await _bypassed(gateway.port) - before),
            peak_memory_bytes(gateway.pid),
        )
    finally:
        crowd.close()


def _all(record: Record) -> Sequence[float]:
    return sorted(latency for each in record.latencies.values() for latency in each)


@asynccontextmanager
async def _disturbed(stage: Stage, gateway: Process, name: str, file: Path) -> AsyncIterator[None]:
    if name == ALONE:
        yield
        return
    command = [
        sys.executable,
        "-m",
        "bench.neighbours.disturbances",
        name,
        str(gateway.port),
        str(file),
    ]
    with (stage.folder / f"{name}-disturbance.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *bound(command), cwd=ROOT, stdin=DEVNULL, stdout=log, stderr=log
        )
    try:
        await asyncio.sleep(SETTLE_S)
        yield
        assert process.returncode is None, f"{name} ended by itself"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _bypassed(port: int) -> float:
    caller = Caller(port)
    answer = await caller.send(b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n", PATIENCE_S)
    caller.close()
    lines = (line.rpartition(b" ") for line in answer.body.splitlines())
    return sum(float(n) for series, _, n in lines if series == b"flokit_claims_bypassed_total")


def _requests(name: str) -> Any:
    random = Random(1)  # noqa: S311 - repeatable is wanted

    def request(number: int) -> tuple[str, bytes]:
        sent = {"secret": SECRET} | parameters(number, APP, "g3mz3t", random)
        query = urlencode(sent | {"user_id": f"{name}{number}", "created_at": "1750500000"})
        return "", f"GET /ingest/adjust?{query} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()

    return request


def add_command(commands: Any) -> None:
    """Add `neighbours` to the commands of the bench."""
    text = "small callbacks, alone and beside each way to make them wait"
    parser = commands.add_parser("neighbours", help=text, description=text)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(DISTURBANCES)}; else all of them")
    parser.add_argument("--duration", type=float, default=20, help="seconds beside each")
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    names = arguments.names or list(DISTURBANCES)
    with Progress(len(names) + 1, "rounds") as progress:
        measured = await run(
            progress, names=names, duration_s=arguments.duration, folder=arguments.folder
        )
    print_neighbours(measured)
    return 1 if any(each.misses(measured[0]) for each in measured) else 0


def print_neighbours(measured: Sequence[Neighbours]) -> None:
    """Print a row for each disturbance."""
    print(f"{RATE:.0f} callbacks a second; milliseconds; the most memory in MiB")
    rows = []
    for each in measured:
        missed = each.misses(measured[0])
        waits = [percentile(each.latencies, share) for share in (0.5, 0.99, 1)]
        rows.append((
            each.beside, each.sent, *(1000 * wait for wait in waits), each.bypassed,
            each.memory_bytes // MIB, f"MISSED: {missed}" if missed else "ok",
        ))  # fmt: skip
    print_table(HEADINGS, rows)
