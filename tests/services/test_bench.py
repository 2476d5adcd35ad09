"""The bench: what it computes, and one short run of everything, so that it can never rot."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from bench import contenders
from bench.contenders import PATH
from bench.overload.verdict import percentile
from bench.performance import compare, compare_report
from bench.performance.measure import Bench, Cost, LatencyRound, PeakRound, balance, sent_at_most
from bench.performance.targets import (
    AFTERNOON,
    AFTERNOON_80,
    AT_200,
    AT_1000,
    CPU,
    DUPLICATES,
    EMPTY,
    FLOOR,
    FULL,
    GATEWAY,
    GATEWAY_80,
    MEMORY,
    PEAK,
    TARGETS,
    Figure,
    Rounds,
    Target,
    figures,
    judge,
    judge_all,
)
from bench.testbed.environment import open_stage
from bench.testbed.load import (
    K6_FAILED_THRESHOLDS,
    Latency,
    Mix,
    Peak,
    parse_k6,
    program,
    run_tool,
    settings,
)
from bench.testbed.machine import look_at_machine
from bench.testbed.processes import cpu_s, parse_peak, parse_stat, peak_memory_bytes
from bench.testbed.report import markdown_table
from tests.gateways import PATIENCE_S, ROOT

SCRIPTS = ("steady", "ramp", "spike", "soak")
WRK = Peak(1000, 1.0, 1064, 1064, 0, 0, 0, 0, 1.0, 2.0, 3.0)


def peak(rate: float, server_us: float, problem: str = "") -> PeakRound:
    """A round in closed loop."""
    return PeakRound(
        rate, Cost(server_us, server_us / 2, 20.0, 5.0), 1064, 60 * 1024**2, WRK, problem
    )


def latency(p50_ms: float, p99_ms: float) -> LatencyRound:
    """A round in open loop."""
    k6 = Latency(1000.0, 9, 9, 0, 0, 0, 0, p50_ms, p50_ms, p99_ms, p99_ms)
    return LatencyRound(9, k6)


def rounds(problem: str = "") -> Rounds:
    """A whole run, of three rounds each."""
    rates = {FLOOR: (20_000, 40), GATEWAY: (8_000, 80), AFTERNOON: (2_000, 400)}
    rates |= {DUPLICATES: (8_800, 70), EMPTY: (8_000, 80), FULL: (7_000, 90)}
    times = {AT_1000: (2, 20), AT_200: (2, 3), GATEWAY_80: (2, 10), AFTERNOON_80: (3, 100)}
    return Rounds(
        # The first and the last round went badly, in opposite ways: medians do not care.
        {
            name: [peak(rate * 2, us * 3, problem), peak(rate, us), peak(rate / 9, us / 2)]
            for name, (rate, us) in rates.items()
        },
        {
            name: [latency(p50 * 9, p99 * 9), latency(p50, p99), latency(p50 / 2, p99 / 2)]
            for name, (p50, p99) in times.items()
        },
        [{"p50_ms": 1.0}, {"p50_ms": 0.8}, {"p50_ms": 5.0}],
        {4: [2_000, 100, 1_900], 16: [1_500, 1_600, 9_000]},
        filled_rows=10_000_000,
        redis_keys=1_000,
        redis_bytes=130_000,
    )


def test_cpu_of_a_process_whose_name_is_odd() -> None:
    """The fields are counted from the last parenthesis; clock ticks become seconds."""
    before = "17 (a (b) c) S 1 17 17 0 -1 4194304 9 8 7 6"
    times = parse_stat(f"{before} 150 50 20 10 20 0 1 0 12345")
    ticks = os.sysconf("SC_CLK_TCK")
    assert times == (170 / ticks, 60 / ticks)


def test_cpu_of_children() -> None:
    """What a process has started counts, while it runs and when it has ended."""
    busy = "import time\nwhile time.process_time() < 0.3: pass\n"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {busy!r}])\ninput()"
    with subprocess.Popen([sys.executable, "-c", parent], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + PATIENCE_S
        while cpu_s(process.pid) < 0.25 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        used_s = cpu_s(process.pid)
        assert peak_memory_bytes(process.pid) > 1_000_000
        process.communicate(b"\n")
    assert 0.25 <= used_s < 3
    assert cpu_s(process.pid) == 0


def test_peak_memory() -> None:
    """The high-water mark is read, not what is resident now."""
    assert parse_peak("VmPeak:\t9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n") == 2 * 1024**2


def test_percentiles() -> None:
    """A percentile is one of the values, and of nothing it is 0."""
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5) == pytest.approx(50, abs=1)
    assert percentile(values, 0.99) == pytest.approx(99, abs=1)
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) == 0


def test_summary_of_k6() -> None:
    """What never happened is missing from k6's summary, and is 0."""
    took = {"med": 1.5, "p(95)": 3, "p(99)": 4, "p(99.9)": 5}
    metrics = {
        "http_req_duration{scenario:load}": took,
        "http_reqs": {"count": 10},
        "callbacks_written": {"count": 9},
        "callbacks_unanswered": {"count": 1},
    }
    read = parse_k6(200, {"metrics": metrics})
    assert read == Latency(200, 10, 9, 0, 0, 1, 0, 1.5, 3, 4, 5)


def test_books() -> None:
    """Fewer rows than answers is a lie; more than were sent, too."""
    assert balance(95, 90, 100) == ""
    assert balance(89, 90, 100) == "1 rows fewer than were answered"
    assert balance(102, 90, 100) == "2 rows more than were sent"


def test_books_of_k6() -> None:
    """At a high rate k6 sends some more than it was told to, and says so."""
    told = Latency(6000.0, 60_023, 60_023, 0, 0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    assert balance(60_023, 60_023, sent_at_most(told, 10)) == ""
    assert balance(60_024, 60_023, sent_at_most(told, 10)) == "1 rows more than were sent"
    silent = Latency(6000.0, 59_000, 59_000, 0, 0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    assert balance(60_000, 59_000, sent_at_most(silent, 10)) == ""


def test_figures_are_made_of_medians() -> None:
    """One bad round does not count, and a ratio is one of medians."""
    found = {target.figure: round(figure.value, 3) for target, figure in figures(rounds()).items()}
    assert rounds().pool_size == 4
    ratios = (2.0, 4.0, 2.0, 20.0, 0.1, 2.0, 1.1, 1.1, 60.0, 130.0)
    assert [found[target.figure] for target in TARGETS] == list(ratios)


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (CPU, 1.9, "ok"),
        (CPU, 2.09, "MISSED by 10.0%"),
        (PEAK, 4.5, "ok"),
        (PEAK, 3.6, "MISSED by 20.0%"),
        (MEMORY, 300, "MISSED by 100.0%"),
    ],
)
def test_verdict(target: Target, value: float, verdict: str) -> None:
    """A target that is missed says by how much, whichever way it points."""
    assert judge(target, Figure(value)).verdict == verdict


def test_a_missed_target_and_a_wrong_book_fail_the_run() -> None:
    """What does not hold is in the table, and each round of it is named."""
    verdicts = judge_all(rounds("rows are missing"))
    assert len(verdicts) == len(TARGETS) + 1
    missed = [verdict for verdict in verdicts if not verdict.holds]
    assert [verdict.verdict for verdict in missed][-1] == "MISSED by 6 rounds"
    assert "floor, round 1: rows are missing" in rounds("rows are missing").problems()
    assert judge_all(rounds())[-1].holds


def test_report(tmp_path: Path) -> None:
    """The report has the table, the machine and plots; the JSON has every round."""
    run = rounds()
    began = datetime.now(UTC)
    machine = look_at_machine("these servers")
    report = compare_report.Report(
        began=began,
        ended=began,
        machine=machine,
        plan=compare.Plan(),
        rounds=run,
        verdicts=judge_all(run),
    )
    path = compare_report.write(report, tmp_path)
    text = path.read_text()
    for word in ("these servers", machine.commit, "MISSED by 11.1%", "cpu.svg", TARGETS[0].figure):
        assert word in text
    assert str(ROOT) not in text
    assert b"<svg" in (path.parent / "latency.svg").read_bytes()
    read = msgspec.json.decode(
        (path.parent / "results.json").read_bytes(), type=dict[str, msgspec.Raw]
    )
    assert msgspec.json.decode(read["rounds"], type=Rounds) == run


def test_table_as_text() -> None:
    """Numbers stand to the right, and there is nothing around the table."""
    assert markdown_table(("a", "b"), [("x", 1_000)]) == (
        "| a |     b |\n|---|-------|\n| x | 1,000 |\n"
    )


@pytest.mark.services
async def test_quick(tmp_path: Path) -> None:
    """Everything is measured, if only for a second, and every answered callback is a row."""
    run, _ = await compare.run(compare.QUICK, tmp_path)
    assert run.problems() == []
    assert len(judge_all(run)) == len(TARGETS) + 1
    assert all(figure.value > 0 for figure in figures(run).values())
    assert run.filled_rows >= compare.QUICK.filled_rows


@pytest.mark.services
async def test_tools_by_themselves(tmp_path: Path) -> None:
    """k6 and locust, told by the environment alone, send what was asked for."""
    shared = settings(Mix(duplicates=0.3, unmapped=0.1)) | {"RATE": "40", "P99_MS": "60000"}
    k6 = [str(program("k6")), "run", "--quiet", "--no-usage-report", "--address="]
    locust = [str(program("locust")), "--headless", f"--locustfile={ROOT}/bench/locustfile.py"]
    # A machine that is busy makes k6 late, which is a threshold of its own.
    allowed = (0, K6_FAILED_THRESHOLDS)
    async with open_stage(folder=tmp_path, gateways=0) as stage:
        bench = Bench(stage)
        async with bench.start(contenders.GATEWAY) as running:
            shared["URL"] = f"http://127.0.0.1:{running.process.port}{PATH}"
            async with asyncio.TaskGroup() as group:
                for name in SCRIPTS:
                    script = [*k6, f"--summary-export={name}.json", f"{ROOT}/bench/k6/{name}.js"]
                    environ = shared | {"DURATION": "6s", "RUN": name}
                    group.create_task(run_tool(script, environ, 6, tmp_path, allowed))
            before, begun = await bench.rows(), time.monotonic()
            environ = shared | {"DURATION": "3", "CALLERS": "4"}
            output = await run_tool(locust, environ, 3, tmp_path)
            took_s, rows = time.monotonic() - begun, await bench.rows() - before
    read = [
        parse_k6(40, msgspec.json.decode((tmp_path / f"{n}.json").read_bytes())) for n in SCRIPTS
    ]
    assert all(seen.written > 0 for seen in read)
    assert sum(seen.written for seen in read) == before
    told = re.search(rb" 0 of (\d+) failed", output)
    assert told
    assert 0 < rows <= int(told[1]) <= 40 * took_s


@pytest.mark.services
@pytest.mark.parametrize(
    ("command", "number"), [("compare", signal.SIGINT), ("curves", signal.SIGTERM)]
)
def test_interrupted(tmp_path: Path, command: str, number: signal.Signals) -> None:
    """Whoever ends the bench in the midst of load finds nothing left running, and no report."""
    folder, reports = tmp_path / "stage", tmp_path / "results"
    options = [f"--folder={folder}", f"--results={reports}"]
    with subprocess.Popen(
        [sys.executable, "-m", "bench", command, "--quick", *options],
        cwd=ROOT,
        stderr=subprocess.DEVNULL,
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while "wrk" not in processes_of(folder) and time.monotonic() < deadline:
            time.sleep(0.02)
        names = processes_of(folder)
        assert "postgres" in names
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 130
    assert processes_of(folder) == set()
    assert not reports.exists()


def processes_of(folder: Path) -> set[str]:
    """The programs that work in a folder, or were told of it."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            is_inside = (process / "cwd").readlink().is_relative_to(folder)
            if is_inside or str(folder).encode() in told:
                found.add((process / "exe").readlink().name)
        except OSError:
            continue  # it has ended meanwhile
    return found
