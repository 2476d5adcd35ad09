"""The promise under faults, by a vendor that keeps a ledger; and an oracle that can be trusted."""

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.faults.command import Result, print_result, run
from bench.faults.faults import FAULTS
from bench.faults.schedule import Plan, make_plan, short_plan
from bench.faults.stories import Plot
from bench.testbed import vendor
from bench.testbed.gateway import PATIENCE_S, ROOT
from bench.testbed.report import Progress

# What each saboteur is up against, and what of it the oracle must see.
SABOTAGE: dict[str, tuple[Sequence[str], Sequence[str], str]] = {
    "seen-when-claimed": (["gateway_killed_between_claim_and_commit"], [], "lost"),
    "busy-is-duplicate": ([], [], "lied"),
    "answers-before-commit": ([], [], "lied"),
    "never-refuses": ([], [], "stuck"),
    "no-unique-index": (["redis_flushed"], ["DROP INDEX events_occurred_at_event_id"], "doubled"),
}


async def carry_out(plan: Plan, folder: Path, **more: Sequence[str]) -> Result:
    """Run a plan as the command does; what it has found is printed where a test fails."""
    with Progress(plan.callbacks, "callbacks") as progress:
        result = await run(plan, progress, folder=folder, **more)
    print_result(result)
    return result


@pytest.mark.services
async def test_every_fault_once(tmp_path: Path) -> None:
    """Twenty thousand callbacks and a fault of every kind: each event has exactly one row."""
    result = await carry_out(short_plan(seed=7), tmp_path)
    assert result.is_clean
    assert result.strikes == dict.fromkeys(FAULTS, 1)
    assert result.verdict.rows > 0.9 * result.plan.callbacks


@pytest.mark.services
@pytest.mark.parametrize("name", SABOTAGE)
async def test_sabotage_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """A gateway that breaks the promise in this way is found out, and for this reason."""
    monkeypatch.setattr(vendor, "RETRY_AFTER_S", (0.1, 0.2, 0.4, 0.8, 1.6))
    kinds, statements, found = SABOTAGE[name]
    plan = make_plan(seed=3, callbacks=1_200, strikes=2 * len(kinds), rate=400, kinds=kinds)
    arguments = ["-m", "tests.sabotage", name]
    result = await carry_out(plan, tmp_path, arguments=arguments, statements=statements)
    assert result.stuck if found == "stuck" else getattr(result.verdict, found)
    assert not result.is_clean


def test_the_same_seed_is_another_run() -> None:
    """A run can be repeated: the seed alone says what is sent, and where what strikes."""
    first, again, other = (short_plan(seed) for seed in (1, 1, 2))
    assert first == again
    assert first.strikes != other.strikes
    stories = [first.author.write(number) for number in range(500)]
    assert stories == [again.author.write(number) for number in reversed(range(500))][::-1]
    assert {story.plot for story in stories} == set(Plot)
    assert stories != [other.author.write(number) for number in range(500)]


STARTS_ONE = """
import asyncio, os, sys
from pathlib import Path
from bench.testbed.gateway import Process

async def main():
    process = Process(1, {}, Path(sys.argv[1]), arguments=["-c", "import time; time.sleep(60)"])
    asyncio.create_task(process.start())
    await asyncio.sleep(0)
    print(process.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_gateways_outlive_the_bench(tmp_path: Path) -> None:
    """Whoever kills the bench is not left with gateways that nobody ends."""
    command = [sys.executable, "-c", STARTS_ONE, str(tmp_path / "log")]
    bench = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert bench.stdout is not None
    started = Path(f"/proc/{bench.stdout.readline().strip()}/cmdline")
    deadline = time.monotonic() + PATIENCE_S
    while b"time.sleep" not in started.read_bytes():  # by then it is bound to its parent
        assert time.monotonic() < deadline
    bench.kill()
    bench.wait()
    bench.stdout.close()
    while started.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
