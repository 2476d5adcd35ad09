"""What `/metrics` says: whether it adds up at every scrape, and stays bounded."""

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.client import head
from tests.gateways import Process, Services, query

RUNS = Callable[..., Process]
OUTCOMES = ("written", "duplicate", "dropped", "failed")
SERIES = re.compile(r"(\w+?)(?:_total)?(?:\{(.*)\})?")
LABEL = re.compile(r'(\w+)="([^"]*)"')


@pytest.fixture
def run(services: Services, database_url: str, tmp_path: Path) -> RUNS:
    """Makes a gateway of its own process, ready to be started."""
    return partial(Process, database_url, services.redis_url, tmp_path)


def by_callbacks(metrics: Mapping[str, float], name: str) -> dict[tuple[str, str], float]:
    """The sums of a metric by vendor and workspace, whatever its other labels."""
    sums: dict[tuple[str, str], float] = defaultdict(float)
    for series, value in metrics.items():
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
async def test_received_is_not_the_sum(run: RUNS, workers: str) -> None:
    """Received = written + duplicate + dropped + failed at every scrape, in the midst of load."""
    with run(WORKERS=workers) as process:
        await asyncio.to_thread(process.wait_until_ready)
        async with load(process.port):
            scrapes = [await process.metrics() for _ in range(300)]
    for metrics in scrapes:
        received = by_callbacks(metrics, "received")
        outcomes: dict[tuple[str, str], float] = defaultdict(float)
        for name in OUTCOMES:
            for labels, number in by_callbacks(metrics, name).items():
                outcomes[labels] += number
        assert received == outcomes
    totals = [sum(by_callbacks(metrics, "received").values()) for metrics in scrapes]
    assert totals == sorted(totals)
    assert totals[-1] > totals[0]
