"""`neighbours`: small callbacks, alone and beside each disturbance, in one run."""

import argparse
import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import msgspec

from bench.neighbours.disturbances import DISTURBANCES, workspaces
from bench.testbed import documents
from bench.testbed.callbacks import get_request, parameters
from bench.testbed.callers import Callers
from bench.testbed.client import metrics
from bench.testbed.console import Progress, markdown_table
from bench.testbed.environment import DEFAULT_TIMEOUTS, Environment, open_environment
from bench.testbed.figures import percentile
from bench.testbed.ledger import AnswerKind
from bench.testbed.machine import Machine, describe_machine
from bench.testbed.process import SERVE, Program, ServerProcess
from bench.testbed.results import Commands
from bench.testbed.usage import peak_memory_bytes, reset_peak_memory

RATE = 80.0
PATIENCE_S = 60.0
SETTLE_S = 2.0
ALONE = "alone"
P99_MAX_S = 0.04
P99_RATIO_MAX = 6.0
# The longest wait beside these is limited as well.
LONGEST_S = {"reload": 0.1, "scrape": 0.06}
# Of the callbacks. A look-up of the generation bypasses Redis for a batch; a whole second without
# Redis is 80 callbacks.
BYPASSED_MAX = 0.02
HEADINGS = ("beside", "callbacks", "p50", "p99", "longest", "Redis bypassed", "memory", "verdict")
MIB = 1024 * 1024


class Neighbours(msgspec.Struct, frozen=True):
    """The callbacks beside one disturbance: their answers and waits."""

    beside: str
    sent: int
    written: int
    latencies: Sequence[float]
    bypassed: int
    memory_bytes: int

    def misses(self, alone: "Neighbours") -> str:
        """Return the names of the missed limits; empty if all are met."""
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
) -> tuple[Sequence[Neighbours], Machine]:
    """Measure callbacks alone, and beside each disturbance; raises EmbeddedError and BenchError."""
    measured = []
    async with open_environment(folder=folder, gateways=0) as environment:
        for place, name in enumerate((ALONE, *names)):
            progress.show(place)
            progress.step(name)
            file = environment.folder / f"{name}.toml"
            file.write_text(workspaces(0))
            settings = DEFAULT_TIMEOUTS | {"WORKSPACES_FILE": str(file)}
            async with environment.serve(name, SERVE, settings, "/readyz") as gateway:
                measured.append(await _measure(environment, gateway, name, duration_s, file))
        return measured, describe_machine(environment.servers.description)


async def _measure(
    environment: Environment, gateway: ServerProcess, name: str, duration_s: float, file: Path
) -> Neighbours:
    callers = Callers(gateway.port, _requests(name))
    try:
        await callers.offer(RATE, SETTLE_S)  # connections, statements, chunks
        await callers.finish(PATIENCE_S)
        reset_peak_memory(gateway.pid)
        before = await _bypassed(gateway.port)
        async with _disturbed(environment, gateway, name, file):
            record = await callers.offer(RATE, duration_s)
            await callers.finish(PATIENCE_S)
        return Neighbours(
            name,
            record.number(),
            record.number(AnswerKind.WRITTEN),
            record.all_latencies(),
            int(await _bypassed(gateway.port) - before),
            peak_memory_bytes(gateway.pid),
        )
    finally:
        callers.close()


@asynccontextmanager
async def _disturbed(
    environment: Environment, gateway: ServerProcess, name: str, file: Path
) -> AsyncIterator[None]:
    if name == ALONE:
        yield
        return
    module = "bench.neighbours.disturbances"
    command = [sys.executable, "-m", module, name, str(gateway.port), str(file)]
    process = Program(command, environment.folder / f"{name}-disturbance.log")
    process.start()
    try:
        await asyncio.sleep(SETTLE_S)
        yield
        assert process.exit_code is None, f"{name} ended by itself"
    finally:
        process.kill()


async def _bypassed(port: int) -> float:
    return (await metrics(port)).get("flokit_claims_bypassed_total", 0)


def _requests(name: str) -> Callable[[int], tuple[str, bytes]]:
    random = Random(1)  # noqa: S311 - repeatable

    def request(number: int) -> tuple[str, bytes]:
        sent = parameters(number, random)
        return "", get_request(sent | {"user_id": f"{name}{number}", "created_at": "1750500000"})

    return request


def add_command(commands: Commands) -> None:
    """Add `neighbours` to the commands of the bench."""
    text = "small callbacks, alone and beside each disturbance"
    parser = commands.add_parser("neighbours", help=text, description=text)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(DISTURBANCES)}; else all of them")
    parser.add_argument("--duration", type=float, default=20, help="seconds beside each")
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    documents.add_option(parser)
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    names = arguments.names or list(DISTURBANCES)
    with Progress(len(names) + 1, "rounds") as progress:
        measured, machine = await run(
            progress, names=names, duration_s=arguments.duration, folder=arguments.folder
        )
    text = table(measured)
    print(text)
    documents.write(arguments, "neighbours", machine, text)
    return 1 if any(each.misses(measured[0]) for each in measured) else 0


def table(measured: Sequence[Neighbours]) -> str:
    """Return a row for each disturbance, in Markdown."""
    rows = []
    for each in measured:
        missed = each.misses(measured[0])
        waits = [percentile(each.latencies, share) for share in (0.5, 0.99, 1)]
        rows.append((
            each.beside, each.sent, *(1000 * wait for wait in waits), each.bypassed,
            each.memory_bytes // MIB, f"MISSED: {missed}" if missed else "ok",
        ))  # fmt: skip
    unit = f"{RATE:.0f} callbacks a second; milliseconds; peak memory in MiB"
    return f"{unit}\n\n{markdown_table(HEADINGS, rows)}"
