"""`flood`: purchases alone and beside a flood of drops, in alternating rounds of one run.

As a program this sends the flood, so that its own cost does not delay the measured callers:
`python -m bench.neighbours.flood PORT RATE`.
"""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import NamedTuple

import uvloop

from bench.neighbours.flood_report import HEADINGS, Flood, Round, rows
from bench.testbed import documents
from bench.testbed.callbacks import get_request, parameters
from bench.testbed.callers import Callers
from bench.testbed.client import get, metrics
from bench.testbed.console import Progress, markdown_table
from bench.testbed.environment import DEFAULT_TIMEOUTS, Environment, open_environment
from bench.testbed.ledger import AnswerKind, classify
from bench.testbed.load import Mix, run_wrk
from bench.testbed.machine import Machine, describe_machine
from bench.testbed.process import SERVE, Program, ServerProcess
from bench.testbed.results import Commands

PURCHASES = 200.0
FLOOD_MAX = 5_000.0
SHARE_OF_PEAK = 0.8
TOKEN = "fl00d"  # noqa: S105 - a token of an event
SETTLE_S = 2.0
PATIENCE_S = 60.0
# Different requests of the flood; generating each would cost more than sending it.
REQUESTS = 1_000
# Of the flood: so many of its callbacks are in flight at most.
CONNECTIONS = 256
# Every drop of the rounds has a place in quarantine; of the last part only those of a share.
ROOM_MB, SMALL_MB = 1_000_000, 8
SINGLES = 5
_KEPT = "SELECT count(*) FROM dropped"
_USED = "SELECT coalesce(sum(bytes), 0)::int8 FROM quarantine_usage WHERE subject = $1"
_SINGLES = "SELECT count(*) FROM dropped WHERE subject LIKE 'single%'"
_ROWS = "flokit_quarantine_rows_total"


class Schedule(NamedTuple):
    """The number of rounds of each kind, and their durations."""

    rounds: int
    duration_s: float
    peak_s: float


async def run(
    schedule: Schedule, progress: Progress, folder: Path | None = None
) -> tuple[Flood, Machine]:
    """Measure everything; raises EmbeddedError and BenchError."""
    flood = Flood(purchases=PURCHASES)
    async with open_environment(folder=folder, gateways=0) as environment:
        async with _serve(environment, "rounds", ROOM_MB) as gateway:
            progress.step("peak of drops")
            await _purchases(gateway, SETTLE_S)
            peak = await run_wrk(
                gateway.port, schedule.peak_s, folder=environment.folder, mix=Mix(unmapped=1)
            )
            flood.peak = peak.requests / peak.duration_s
            flood.rate = min(FLOOD_MAX, SHARE_OF_PEAK * flood.peak)
            for turn in range(schedule.rounds):
                progress.show(turn)
                # Back and forth: the kind that ends one turn begins the next.
                for is_beside in (turn % 2 == 1, turn % 2 == 0):
                    progress.step("beside the flood" if is_beside else "alone")
                    measured = flood.beside if is_beside else flood.alone
                    measured.append(await _round(environment, gateway, flood, schedule, is_beside))
            flood.counted, flood.rows = await _settled(environment, gateway)
        await environment.execute("TRUNCATE dropped, quarantine_usage")
        async with _serve(environment, "share", SMALL_MB) as gateway:
            progress.step("share of the flood")
            await _fill_share(environment, gateway, flood)
        return flood, describe_machine(environment.servers.description)


@asynccontextmanager
async def _serve(environment: Environment, name: str, room_mb: int) -> AsyncIterator[ServerProcess]:
    settings = DEFAULT_TIMEOUTS | {"QUARANTINE_MAX_MB": str(room_mb)}
    async with environment.serve(name, SERVE, settings, "/readyz") as gateway:
        yield gateway


async def _round(
    environment: Environment,
    gateway: ServerProcess,
    flood: Flood,
    schedule: Schedule,
    is_beside: bool,
) -> Round:
    if not is_beside:
        return await _purchases(gateway, schedule.duration_s)
    async with _flooded(environment, gateway, flood.rate):
        before = await _kept(gateway.port)
        measured = await _purchases(gateway, schedule.duration_s)
        kept = await _kept(gateway.port) - before
    await _settled(environment, gateway)
    return measured._replace(drops=kept / schedule.duration_s)


async def _purchases(gateway: ServerProcess, duration_s: float) -> Round:
    random = Random()  # noqa: S311 - other users in each round
    run_of = f"p{random.getrandbits(32)}-"

    def request(number: int) -> tuple[str, bytes]:
        sent = parameters(number, random)
        return "", get_request(sent | {"user_id": f"{run_of}{number}", "created_at": "1750500000"})

    callers = Callers(gateway.port, request)
    try:
        record = await callers.offer(PURCHASES, duration_s)
        await callers.finish(PATIENCE_S)
    finally:
        callers.close()
    return Round(record.number(), record.number(AnswerKind.WRITTEN), record.all_latencies())


@asynccontextmanager
async def _flooded(
    environment: Environment, gateway: ServerProcess, rate: float
) -> AsyncIterator[None]:
    command = [sys.executable, "-m", "bench.neighbours.flood", str(gateway.port), str(rate)]
    sender = Program(command, environment.folder / "flood.log")
    sender.start()
    try:
        await asyncio.sleep(SETTLE_S)
        yield
        assert sender.exit_code is None, "the flood ended by itself"
    finally:
        sender.kill()


async def _fill_share(environment: Environment, gateway: ServerProcess, flood: Flood) -> None:
    """Flood until the share of the token is full; meanwhile send single drops of other tokens."""
    skipped = 'flokit_quarantine_skipped_total{why="account_share"}'
    async with _flooded(environment, gateway, flood.rate), asyncio.timeout(PATIENCE_S):
        while not (await metrics(gateway.port))[skipped]:  # noqa: ASYNC110 - polls a page
            await asyncio.sleep(SETTLE_S / 10)
        for number in range(SINGLES):
            sent = parameters(number, Random(number), token=f"single{number}")  # noqa: S311
            request = get_request(sent | {"created_at": "1750500000"})
            target = request.split(b" ", 2)[1]
            flood.singles += classify(await get(gateway.port, target)) is AnswerKind.DROPPED
    await _settled(environment, gateway)
    flood.share_bytes = SMALL_MB * 1_000_000 / 4
    async with environment.connected() as connection:
        flood.used_bytes = await connection.fetchval(_USED, TOKEN)
        flood.singles_kept = await connection.fetchval(_SINGLES)


async def _kept(port: int) -> int:
    numbers = await metrics(port)
    return int(sum(number for series, number in numbers.items() if series.startswith(_ROWS)))


async def _settled(environment: Environment, gateway: ServerProcess) -> tuple[int, int]:
    """Return the drops counted as kept, and their rows, when the last of the sender are there.

    The numbers differ where they do not become equal.
    """
    deadline, last = time.monotonic() + PATIENCE_S, (-1, -1)
    async with environment.connected() as connection:
        while True:
            found = await _kept(gateway.port), int(await connection.fetchval(_KEPT))
            if (found == last and found[0] == found[1]) or time.monotonic() > deadline:
                return found
            last = found
            await asyncio.sleep(SETTLE_S / 2)


def add_command(commands: Commands) -> None:
    """Add `flood` to the commands of the bench."""
    text = "purchases alone and beside a flood of drops"
    parser = commands.add_parser("flood", help=text, description=text)
    parser.add_argument("--rounds", type=int, default=5, help="rounds alone, and as many beside it")
    parser.add_argument("--duration", type=float, default=10, help="seconds of a round")
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    documents.add_option(parser)
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    schedule = Schedule(arguments.rounds, arguments.duration, arguments.duration)
    with Progress(schedule.rounds, "rounds") as progress:
        flood, machine = await run(schedule, progress, arguments.folder)
    lines = list(rows(flood))
    text = markdown_table(HEADINGS, [(*line[:3], line.verdict) for line in lines])
    print(text)
    documents.write(arguments, "flood", machine, text)
    return 0 if all(line.holds for line in lines) else 1


def _requests() -> Callable[[int], tuple[str, bytes]]:
    random = Random(1)  # noqa: S311 - repeatable
    requests: Sequence[bytes] = [
        get_request(parameters(number, random, token=TOKEN) | {"created_at": "1750500000"})
        for number in range(REQUESTS)
    ]
    return lambda number: ("", requests[number % REQUESTS])


async def _send(port: int, rate: float) -> None:
    await Callers(port, _requests()).flood(rate, CONNECTIONS)


if __name__ == "__main__":
    uvloop.run(_send(int(sys.argv[1]), float(sys.argv[2])))
