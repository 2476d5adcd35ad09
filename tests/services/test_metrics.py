"""The metrics: their sums at every scrape, and their bounds."""

import asyncio
import os
import re
import signal
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from adapters._names import USERS
from app import version
from app.event import DropReason
from app.ingest import UNVERIFIED_PAUSE_S
from app.telemetry import metrics
from bench.testbed.client import Answer, exchange, get, head
from bench.testbed.process import PATIENCE_S, POLL_S, ROOT
from tests.gateways import PATIENT, SECRET, Gateways, Process, Target, query, workspaces_toml

RUNS = Callable[..., Process]
OUTCOMES = ("written", "duplicate", "dropped", "failed")
LAST_USED = "flokit_secret_last_used_timestamp_seconds"
IN_FLIGHT = "flokit_callbacks_in_flight"
VERSION = "flokit_workspaces_version"
LABEL = re.compile(r'(\w+)="([^"]*)"')


def by_callbacks(found: Mapping[str, float], name: str) -> dict[tuple[str, str], float]:
    """The sums of a metric by vendor and workspace, over all other labels."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for series, value in found.items():
        if series.startswith(f"flokit_callbacks_{name}_total{{"):
            labels = dict(LABEL.findall(series))
            sums[labels["vendor"], labels["workspace"]] += value
    return sums


@asynccontextmanager
async def load(port: int, connections: int = 8) -> AsyncIterator[None]:
    """Callbacks without a pause meanwhile: new ones, repeats, and some that are dropped."""

    async def call(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for turn in range(1_000_000):
                # Many at once, and most of them dropped: as often as possible something is counted.
                sent = [query(user_id=f"u{number}_{turn // 2}"), *[query(event_token="no")] * 30]
                writer.write(b"".join(head("GET", f"/ingest/adjust?{text}") for text in sent))
                for _ in sent:
                    await reader.readuntil(b"}")
        finally:
            writer.close()

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call(number)) for number in range(connections)]
        yield
        for task in tasks:
            task.cancel()


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_received_is_the_sum_under_load(run: RUNS, workers: str) -> None:
    """Received = written + duplicate + dropped + failed at every scrape, in the midst of load."""
    with run(WORKERS=workers) as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with load(process.port):
            scrapes = [await process.metrics() for _ in range(300)]
    for found in scrapes:
        received = by_callbacks(found, "received")
        outcomes: dict[tuple[str, str], float] = defaultdict(float)
        for name in OUTCOMES:
            for labels, number in by_callbacks(found, name).items():
                outcomes[labels] += number
        assert received == outcomes
    totals = [sum(by_callbacks(found, "received").values()) for found in scrapes]
    assert totals == sorted(totals)
    assert totals[-1] > totals[0]


async def until(target: Target, holds: Callable[[Mapping[str, float]], bool]) -> dict[str, float]:
    """Return the metrics as soon as this holds of them."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds(found := await target.metrics()):
            await asyncio.sleep(POLL_S)
    return found


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_callbacks_in_flight_are_those_that_wait(
    run: RUNS, gateways: Gateways, workers: str
) -> None:
    """As many are in flight as wait for an answer, on all workers together; then none."""
    with run(WORKERS=workers, **PATIENT) as process:
        await asyncio.to_thread(process.wait_until_ready)
        limit = 5_000 * int(workers)
        await until(process, lambda found: found["flokit_buffer_limit_events"] == limit)
        async with gateways.held_writes():
            calls = [asyncio.create_task(process.callback(user_id=f"u{n}")) for n in range(20)]
            await until(process, lambda found: found[IN_FLIGHT] == 20)
        assert {answer.status for answer in await asyncio.gather(*calls)} == {200}
        found = await until(process, lambda found: found[IN_FLIGHT] == 0)
    stages = {stage: f'flokit_batch_stage_seconds_count{{stage="{stage}"}}' for stage in STAGES}
    batches = found["flokit_batch_events_count"]
    assert found[stages["claim"]] == batches
    assert found[stages["write"]] == found[stages["settle"]] == batches
    assert found["flokit_commit_seconds_count"] == batches


STAGES = ("claim", "write", "settle")


async def test_caller_that_hangs_up_is_not_in_flight(gateways: Gateways) -> None:
    """A callback of a caller that is gone is not in flight any more, nor is a rejected one."""
    gateway = await gateways.start()
    async with gateways.held_writes():
        call = asyncio.create_task(gateway.callback())
        await until(gateway, lambda found: found[IN_FLIGHT] == 1)
        call.cancel()
        await until(gateway, lambda found: found[IN_FLIGHT] == 0)
    await gateway.callback(secret="wrong")
    await gateway.post(b"{", "application/json")
    assert (await gateway.metrics())[IN_FLIGHT] == 0


async def test_unverified_callers_are_not_in_flight(gateways: Gateways) -> None:
    """While an unverified caller waits for its answer, nothing is in flight."""
    gateway = await gateways.start()
    for method in ("GET", "POST"):
        request = head(method, f"/ingest/adjust?{query(secret='wrong')}")
        call = asyncio.create_task(exchange(gateway.port, request))
        await asyncio.sleep(UNVERIFIED_PAUSE_S / 2)
        assert gateway.gateway.ingest.in_flight == 0
        assert not call.done()
        assert (await call).status == 401


async def test_each_secret_has_the_time_of_its_last_use(run: RUNS) -> None:
    """Each secret has the time of its own last use, also when its worker has ended."""
    secrets = f"new-one,{SECRET},another"
    first, second, third = (
        f'{LAST_USED}{{position="{n}",vendor="adjust",workspace=""}}' for n in (1, 2, 3)
    )
    with run(WORKERS="2", ADJUST_CALLBACK_SECRET=secrets) as process:
        await asyncio.to_thread(wait_for_workers, process, 2)
        found = await until(process, lambda found: third in found)
        assert (found[first], found[second], found[third]) == (0, 0, 0)
        began = time.time()
        await process.callback()
        await process.callback(secret="wrong")
        found = await until(process, lambda found: found[second] > 0)
        assert began <= found[second] <= time.time()
        assert (found[first], found[third]) == (0, 0)
        await process.callback(secret="new-one")
        await until(process, lambda found: found[first] > 0)
        before = await process.metrics()
        for worker in workers_of(process):
            os.kill(worker, signal.SIGKILL)
        await asyncio.to_thread(wait_for_workers, process, 4)
        after = await process.metrics()
    for series in (
        first,
        second,
        'flokit_callbacks_received_total{vendor="adjust",workspace="ws_test"}',
    ):
        assert after[series] == before[series]
    assert not any("new-one" in series or SECRET in series for series in after)


def workers_of(process: Process) -> list[int]:
    """The process IDs of all workers that have begun to serve."""
    log = process.log.read_text()
    return [int(pid) for pid in re.findall(r'"serving".*"pid": (\d+)', log)]


def wait_for_workers(process: Process, number: int) -> None:
    """Return when so many workers have begun to serve."""
    deadline = time.monotonic() + PATIENCE_S
    while len(workers_of(process)) < number:
        assert time.monotonic() < deadline, process.log.read_text()
        time.sleep(POLL_S)


def folder_of(worker: int) -> Path:
    """The folder with the counts of a worker."""
    environ = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
    folder = dict(pair.partition(b"=")[::2] for pair in environ)[b"PROMETHEUS_MULTIPROC_DIR"]
    return Path(os.fsdecode(folder))


def make_empty_files(worker: int) -> None:
    """Begin files of another worker, where this one has its own."""
    for kind in ("counter", "gauge_livesum", "histogram"):
        (folder_of(worker) / f"{kind}_1.db").touch()


async def test_empty_file_of_a_worker_harms_no_scrape(run: RUNS) -> None:
    """A worker's new and still empty file harms no scrape."""
    with run(WORKERS="2") as process:
        await asyncio.to_thread(wait_for_workers, process, 2)
        make_empty_files(workers_of(process)[0])
        assert (await get(process.port, "/metrics")).status == 200


async def test_workspaces_version_identifies_a_file(gateways: Gateways) -> None:
    """The version is the same for the same file, and another one for another file."""
    path = gateways.folder / "workspaces.toml"
    versions = []
    for token in ("abc123token", "another", "abc123token"):
        path.write_text(workspaces_toml(token))
        gateway = await gateways.start()
        versions.append((await gateway.metrics())[VERSION])
        await gateway.stop()
    assert versions[0] == versions[2] != versions[1]
    assert all(number == int(number) < 2**32 for number in versions)
    gateway = await gateways.start()
    path.write_text(workspaces_toml("another"))
    await until(gateway, lambda found: found[VERSION] == versions[1])


async def test_failure_counters_begin_at_0(run: RUNS) -> None:
    """Counters with alerts are there from the start, at 0: else a rate would miss a first rise."""
    with run() as process:
        await asyncio.to_thread(process.wait_until_ready)
        found = await process.metrics()
    callback = 'vendor="adjust",workspace="ws_test"'
    for reason in metrics.FAILURES:
        series = f'flokit_callbacks_failed_total{{reason="{reason}",{callback}}}'
        assert found[series] == 0
    for reason in metrics.DROPS:
        assert found[f'flokit_callbacks_dropped_total{{reason="{reason}",{callback}}}'] == 0
    for outcome in ("received", "written", "duplicate"):
        assert found[f"flokit_callbacks_{outcome}_total{{{callback}}}"] == 0
    for reason in metrics.REJECTIONS:
        assert found[f'flokit_requests_rejected_total{{reason="{reason}"}}'] == 0
    for reason in metrics.CLOSINGS:
        assert found[f'flokit_connections_unanswered_total{{reason="{reason}"}}'] == 0
    for reason in metrics.KEPT:
        assert found[f'flokit_quarantine_rows_total{{reason="{reason}"}}'] == 0
    for why in metrics.SKIPS:
        assert found[f'flokit_quarantine_skipped_total{{why="{why}"}}'] == 0
    assert found["flokit_errors_unexpected_total"] == 0


def test_reasons_that_begin_at_0_are_documented() -> None:
    """The reasons that begin at 0 are those that the page on observability lists."""
    page = (ROOT / "docs/observability.md").read_text()
    rows = dict(re.findall(r"^\| `(flokit_\w+)` \|[^|]*\|([^|]*)\|$", page, re.MULTILINE))
    for name, reasons in (
        ("requests_rejected", metrics.REJECTIONS),
        ("connections_unanswered", metrics.CLOSINGS),
        ("quarantine_skipped", metrics.SKIPS),
    ):
        assert set(re.findall(r"`(\w+)`", rows[f"flokit_{name}_total"])) == set(reasons)
    assert set(metrics.FAILURES) <= set(
        re.findall(r"`(\w+)`", rows["flokit_callbacks_failed_total"])
    )


LABELS = {
    "vendor": {"adjust"},
    "workspace": {"", "ws_test"},
    "version": {version.VERSION},
    "python": {version.PYTHON_VERSION},
    "stage": set(STAGES),
    "position": {"1"},
    "name": {*USERS, "transaction_id", "deduplication_id"},
    "why": set(metrics.SKIPS),
    "reason": {*metrics.FAILURES, *metrics.REJECTIONS, *metrics.CLOSINGS}
    | {"adapter_error", "buffer_closed", "cancelled"}
    | {reason.value for reason in DropReason},
}


async def strange(process: Process, text: str) -> list[Answer]:
    """Put a text wherever a caller may put one."""
    target = f"/ingest/adjust?{query(event_token=text)}"
    return [
        await process.callback(app_token=text),
        await process.callback(event_token=text, activity_kind=text),
        await process.callback(secret=text, created_at=text),
        await process.post(text.encode(), text),
        await get(process.port, f"/ingest/{text}?{query()}"),
        await get(process.port, f"/{text}"),
        await get(process.port, target, headers={"Host": text, text: text}),
        await exchange(process.port, head(text.upper(), target)),
        await exchange(process.port, text.encode() + b"\r\n\r\n"),
    ]


async def test_strangers_make_no_series(run: RUNS) -> None:
    """For any request, labels hold only our own words and the file's names."""
    numbers = []
    with run() as process:
        await asyncio.to_thread(process.wait_until_ready)
        for turn in range(5):
            for text in (f"x{turn}", f"ws_{turn}", f"adjust{turn}"):
                await strange(process, text)
            found = await process.metrics()
            numbers.append(len(found))
    assert len(set(numbers[1:])) == 1, numbers
    for series in found:
        if series.startswith("flokit_"):
            for name, value in LABEL.findall(series):
                assert name == "le" or value in LABELS[name], series


async def test_unexpected_error_is_a_500(gateways: Gateways) -> None:
    """A defect is answered 500, and counted as one; a rejection is not."""
    gateway = await gateways.start()
    before = (await gateway.metrics())["flokit_errors_unexpected_total"]
    await gateway.callback(secret="wrong")
    await get(gateway.port, "/nowhere")
    gateway.gateway.ingest._workspaces = None  # type: ignore[assignment]
    assert (await gateway.callback()).status == 500
    assert (await gateway.metrics())["flokit_errors_unexpected_total"] == before + 1
