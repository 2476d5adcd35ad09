"""The bench: its figures and reports, and one short run of each tool."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from bench import contenders
from bench.performance import compare, compare_report
from bench.performance.measure import Bench, Cost, LatencyRound, PeakRound, balance, sent_at_most
from bench.performance.schedules import QUICK_COMPARE, CompareSchedule
from bench.performance.targets import (
    AFTERNOON,
    AFTERNOON_80,
    APPSFLYER,
    AT_200,
    AT_1000,
    CPU,
    DROPS,
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
from bench.testbed.callbacks import ENDPOINT
from bench.testbed.console import markdown_table
from bench.testbed.environment import open_environment
from bench.testbed.figures import percentile
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
from bench.testbed.machine import describe_machine
from bench.testbed.process import PATIENCE_S, ROOT
from bench.testbed.usage import cpu_s, parse_peak, parse_stat, peak_memory_bytes

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
    rates |= {DUPLICATES: (8_800, 70), DROPS: (9_000, 60), APPSFLYER: (6_000, 112)}
    rates |= {EMPTY: (8_000, 80), FULL: (7_000, 90)}
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


def test_cpu_time_follows_the_last_parenthesis() -> None:
    """The fields are counted from the last parenthesis; clock ticks become seconds."""
    before = "17 (a (b) c) S 1 17 17 0 -1 4194304 9 8 7 6"
    times = parse_stat(f"{before} 150 50 20 10 20 0 1 0 12345")
    ticks = os.sysconf("SC_CLK_TCK")
    assert times == (170 / ticks, 60 / ticks)


def test_cpu_time_of_children_counts() -> None:
    """The CPU time of a child counts, before and after its end."""
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


def test_peak_memory_is_the_high_water_mark() -> None:
    """The peak is read, not the present resident memory."""
    assert parse_peak("VmPeak:\t9 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 1024 kB\n") == 2 * 1024**2


def test_percentile_is_one_of_the_values() -> None:
    """A percentile is one of the values, and 0 without any."""
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5) == pytest.approx(50, abs=1)
    assert percentile(values, 0.99) == pytest.approx(99, abs=1)
    assert percentile([7.0], 0.99) == 7
    assert percentile([], 0.5) == 0


def test_missing_counts_of_k6_are_zero() -> None:
    """A counter without an event is missing from k6's summary."""
    took = {"med": 1.5, "p(95)": 3, "p(99)": 4, "p(99.9)": 5}
    metrics = {
        "http_req_duration{scenario:load}": took,
        "http_reqs": {"count": 10},
        "callbacks_written": {"count": 9},
        "callbacks_unanswered": {"count": 1},
    }
    read = parse_k6(200, msgspec.json.encode({"metrics": metrics}))
    assert read == Latency(200, 10, 9, 0, 0, 1, 0, 1.5, 3, 4, 5)


def test_missing_and_surplus_rows_are_problems() -> None:
    """Fewer rows than answers are a problem, and more rows than callbacks."""
    assert balance(95, 90, 100) == ""
    assert balance(89, 90, 100) == "1 rows fewer than were answered"
    assert balance(102, 90, 100) == "2 rows more than were sent"


def test_k6_may_send_more_than_its_rate() -> None:
    """At a high rate k6 sends more than asked for, and counts it."""
    counted = Latency(6000.0, 60_023, 60_023, 0, 0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    assert balance(60_023, 60_023, sent_at_most(counted, 10)) == ""
    assert balance(60_024, 60_023, sent_at_most(counted, 10)) == "1 rows more than were sent"
    silent = Latency(6000.0, 59_000, 59_000, 0, 0, 0, 0, 1.0, 1.0, 1.0, 1.0)
    assert balance(60_000, 59_000, sent_at_most(silent, 10)) == ""


def test_figures_are_made_of_medians() -> None:
    """One bad round does not count; a ratio is one of medians."""
    found = {target.figure: round(figure.value, 3) for target, figure in figures(rounds()).items()}
    assert rounds().pool_size == 4
    ratios = (2.0, 4.0, 2.0, 20.0, 0.1, 2.0, 1.1, 1.1, 60.0, 130.0, 0.75, 1.4)
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
def test_verdict_has_the_size_of_a_miss(target: Target, value: float, verdict: str) -> None:
    """A missed target has the size of the miss, for upper and lower limits."""
    assert judge(target, Figure(value)).verdict == verdict


def test_missed_target_or_row_fails_the_run() -> None:
    """A miss is in the table, and each round with a problem is named."""
    verdicts = judge_all(rounds("rows are missing"))
    assert len(verdicts) == len(TARGETS) + 1
    missed = [verdict for verdict in verdicts if not verdict.holds]
    assert [verdict.verdict for verdict in missed][-1] == "MISSED by 8 rounds"
    assert "floor, round 1: rows are missing" in rounds("rows are missing").problems()
    assert judge_all(rounds())[-1].holds


def test_report_has_table_machine_and_plots(tmp_path: Path) -> None:
    """The report has the table, the machine and plots; the JSON has every round."""
    run = rounds()
    began = datetime.now(UTC)
    machine = describe_machine("these servers")
    report = compare_report.CompareResults(
        began=began,
        ended=began,
        machine=machine,
        schedule=CompareSchedule(),
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


def test_numbers_of_a_table_are_aligned_right() -> None:
    """Numbers are aligned to the right; nothing surrounds the table."""
    assert markdown_table(("a", "b"), [("x", 1_000)]) == (
        "| a |     b |\n|---|-------|\n| x | 1,000 |\n"
    )


@pytest.mark.services
async def test_quick_compare_has_every_figure(tmp_path: Path) -> None:
    """Every step runs for a second, and every answered callback has a row."""
    run, _ = await compare.run(QUICK_COMPARE, tmp_path)
    assert run.problems() == []
    assert len(judge_all(run)) == len(TARGETS) + 1
    assert all(figure.value > 0 for figure in figures(run).values())
    assert run.filled_rows >= QUICK_COMPARE.filled_rows


def locust() -> Sequence[str]:
    """Return the command line of locust with the script of the bench."""
    return [str(program("locust")), "--headless", f"--locustfile={ROOT}/bench/locustfile.py"]


@pytest.mark.services
async def test_k6_and_locust_run_by_themselves(tmp_path: Path) -> None:
    """k6 and locust, configured by the environment alone, send the callbacks asked for."""
    shared = settings(Mix(duplicates=0.3, unmapped=0.1)) | {"RATE": "40", "P99_MS": "60000"}
    k6 = [str(program("k6")), "run", "--quiet", "--no-usage-report", "--address="]
    # A machine that is busy makes k6 late, which is a threshold of its own.
    allowed = (0, K6_FAILED_THRESHOLDS)
    async with open_environment(folder=tmp_path, gateways=0) as environment:
        bench = Bench(environment)
        async with bench.start(contenders.GATEWAY) as running:
            shared["URL"] = f"http://127.0.0.1:{running.process.port}{ENDPOINT}"
            async with asyncio.TaskGroup() as group:
                for name in SCRIPTS:
                    script = [*k6, f"--summary-export={name}.json", f"{ROOT}/bench/k6/{name}.js"]
                    environ = shared | {"DURATION": "6s", "RUN": name}
                    group.create_task(run_tool(script, environ, 6, tmp_path, allowed))
            before, begun = await bench.rows(), time.monotonic()
            environ = shared | {"DURATION": "3", "CALLERS": "4"}
            output = await run_tool(locust(), environ, 3, tmp_path)
            took_s, rows = time.monotonic() - begun, await bench.rows() - before
    read = [parse_k6(40, (tmp_path / f"{n}.json").read_bytes()) for n in SCRIPTS]
    assert all(seen.written > 0 for seen in read)
    assert sum(seen.written + seen.dropped for seen in read) == before
    summary = re.search(rb" 0 of (\d+) failed", output)
    assert summary
    assert 0 < rows <= int(summary[1]) <= 40 * took_s


async def test_locust_waits_for_its_last_answers(tmp_path: Path) -> None:
    """A callback under way at the end is answered and counted, by locust as by the server."""
    arrived = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal arrived
        with closing(writer), suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                arrived += 1
                await asyncio.sleep(0.3)  # all callers are waiting nearly always
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        environ = {"RATE": "40", "DURATION": "2", "CALLERS": "4", "P99_MS": "60000"}
        environ["URL"] = f"http://127.0.0.1:{port}{ENDPOINT}"
        output = await run_tool(locust(), environ, 2, tmp_path)
    assert f" 0 of {arrived} failed".encode() in output


@pytest.mark.services
@pytest.mark.parametrize("vendor", ["appsflyer", "branch"])
async def test_every_tool_sends_messages_of_a_vendor(tmp_path: Path, vendor: str) -> None:
    """wrk, k6 and locust send JSON of AppsFlyer and Branch, and each answer has its row."""
    mix = Mix(vendor=vendor)
    async with open_environment(folder=tmp_path, gateways=0) as environment:
        bench = Bench(environment)
        async with bench.start(contenders.GATEWAY) as running:
            assert (await bench.peak(running, 1, mix=mix)).problem == ""
            k6 = await bench.latency(running, 40, 2, mix=mix)
            assert (k6.problem, k6.k6.dropped) == ("", 0)
            assert k6.k6.written > 0
            before = await bench.rows()
            shared = settings(mix) | {"RATE": "40", "DURATION": "2", "CALLERS": "4"}
            shared |= {"P99_MS": "60000", "RUN": "locust"}
            shared["URL"] = f"http://127.0.0.1:{running.process.port}{mix.endpoint}"
            output = await run_tool(locust(), shared, 2, tmp_path)
            assert b" 0 of " in output
            assert await bench.rows() > before


@pytest.mark.services
@pytest.mark.parametrize(
    ("command", "number"), [("compare", signal.SIGINT), ("curves", signal.SIGTERM)]
)
def test_interrupted_bench_leaves_nothing(
    tmp_path: Path, command: str, number: signal.Signals
) -> None:
    """A signal under load stops every process, without a report."""
    folder, reports = tmp_path / "data", tmp_path / "results"
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
    """Return the programs in a folder, or with its path in their command or environment."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            is_inside = (process / "cwd").readlink().is_relative_to(folder)
            if is_inside or str(folder).encode() in known:
                found.add((process / "exe").readlink().name)
        except OSError:
            continue  # it has ended meanwhile
    return found
