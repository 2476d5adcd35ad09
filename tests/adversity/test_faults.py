"""Exactly once under faults, by a vendor with a ledger."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.faults.faults import QUICK, unavailable
from bench.faults.report import print_result
from bench.faults.run import Result, run
from bench.faults.schedule import TAIL, Schedule, make_schedule, make_schedules, short_schedule
from bench.testbed.console import Progress
from bench.testbed.deliveries import EventKind
from bench.testbed.process import PATIENCE_S, ROOT

# Beside the other workers of the tests.
RECOVERY_MAX_S = 30.0


async def run_schedule(schedule: Schedule, folder: Path) -> Result:
    """Run a schedule as the command does; a failed test shows the printed table."""
    with Progress(schedule.callbacks, "callbacks") as progress:
        result = await run(schedule, progress, folder=folder, recovery_max_s=RECOVERY_MAX_S)
    print_result([result])
    return result


@pytest.mark.services
async def test_every_quick_fault_once(tmp_path: Path) -> None:
    """Twenty thousand callbacks and a fault of most kinds: each event has exactly one row."""
    result = await run_schedule(short_schedule(seed=7), tmp_path)
    assert result.is_clean
    assert result.injections == dict.fromkeys(set(QUICK) - unavailable().keys(), 1)
    assert result.verdict.rows > 0.9 * result.schedule.callbacks
    # The callbacks after the last fault, at least, may not fail.
    assert result.verdict.undisturbed > TAIL * result.schedule.callbacks


@pytest.mark.services
@pytest.mark.parametrize(
    "kinds",
    [
        ["primary_killed_before_the_answer", "recovered_to_a_moment"],
        ["gateway_clock_behind"],
    ],
)
async def test_slow_fault_once(tmp_path: Path, kinds: Sequence[str]) -> None:
    """A failover, a recovery to a moment, or a wrong clock: each event has exactly one row."""
    if missing := unavailable().keys() & kinds:
        pytest.skip(f"no program for {missing}")
    schedule = make_schedule(
        seed=7, callbacks=700 * (1 + len(kinds)), injections=len(kinds), rate=150, kinds=kinds
    )
    result = await run_schedule(schedule, tmp_path)
    assert result.is_clean
    assert result.injections == dict.fromkeys(kinds, 1)


def test_seed_determines_the_run() -> None:
    """The seed alone determines the events, the faults and their places."""
    first, again, other = (short_schedule(seed) for seed in (1, 1, 2))
    assert first == again
    assert first.injections != other.injections
    events = [first.generator.event(number) for number in range(500)]
    assert events == [again.generator.event(number) for number in reversed(range(500))][::-1]
    assert {first.generator.event(number).kind for number in range(5_000)} == set(EventKind)
    assert events != [other.generator.event(number) for number in range(500)]


@pytest.mark.parametrize(("callbacks", "faults"), [(3_000_000, 1_000), (1_000, 7), (60_001, 60)])
def test_environments_share_all_callbacks_and_faults(callbacks: int, faults: int) -> None:
    """No callback is lost to rounding: a run has as many as it was asked for."""
    schedules = make_schedules(seed=1, callbacks=callbacks, injections=faults, rate=700)
    assert sum(schedule.callbacks for schedule in schedules) == callbacks
    assert sum(len(schedule.injections) for schedule in schedules) == faults


STARTS_ONE = """
import asyncio, os, sys
from pathlib import Path
from bench.testbed.process import ServerProcess

async def main():
    sleep = ["-c", "import time; time.sleep(60)"]
    process = ServerProcess(1, {}, Path(sys.argv[1]), arguments=sleep)
    process.start()
    print(process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_gateways_end_with_the_bench(tmp_path: Path) -> None:
    """A killed bench leaves no gateway behind."""
    command = [sys.executable, "-c", STARTS_ONE, str(tmp_path / "log")]
    bench = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert bench.stdout is not None
    started = Path(f"/proc/{bench.stdout.readline().strip()}/cmdline")
    deadline = time.monotonic() + PATIENCE_S
    # `setpriv` binds it to its parent, and is the program until then.
    while not (words := started.read_bytes()) or b"setpriv" in words:
        assert time.monotonic() < deadline
    bench.kill()
    bench.wait()
    bench.stdout.close()
    while started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
