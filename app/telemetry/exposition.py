"""Every metric as Prometheus text: what is few at once, what each workspace has in slices."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import islice
from operator import add
from pathlib import Path
from typing import TypeVar

from prometheus_client import REGISTRY, Gauge
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from app.telemetry.metrics import BY_WORKSPACE, OUTCOMES, RECEIVED, Metric
from app.telemetry.tallies import Labels

# So many series are a slice, and take a millisecond. Then whatever else waits for the loop goes on.
SLICE = 500
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

T = TypeVar("T")


async def exposition() -> bytes:
    """Return every metric; with several workers, the sum of all."""
    text = [_few()]
    received: defaultdict[Labels, float] = defaultdict(float)
    for metric in BY_WORKSPACE:
        numbers = await _read(metric)
        if metric in OUTCOMES:
            # From what is shown, and not from what is counted meanwhile: so it adds up.
            async for some in _slices(numbers.items()):
                for labels, number in some:
                    received[labels[:2]] += number
        text += await _render(metric, numbers)
    text += await _render(RECEIVED, received)
    return b"".join(text)


async def _slices(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """Yield all items, some at a time; others have the loop in between."""
    iterator = iter(items)
    while some := list(islice(iterator, SLICE)):
        yield some
        await asyncio.sleep(0)


async def _read(metric: Metric) -> Mapping[Labels, float]:
    """Return the numbers of all workers together, but of no workspace that is gone."""
    merge = max if isinstance(metric, Gauge) else add
    tally = BY_WORKSPACE[metric]
    numbers: dict[Labels, float] = {}
    for of_worker in BY_WORKSPACE.read(metric):
        async for some in _slices(of_worker):
            for labels, number in some:
                if tally.is_wanted(labels):
                    numbers[labels] = merge(numbers.get(labels, 0.0), number)
    beginnings = BY_WORKSPACE.of_callbacks.get(metric, ())
    async for pairs in _slices(BY_WORKSPACE.in_use if beginnings else ()):
        for pair in pairs:
            for more in beginnings:
                numbers.setdefault((*pair, *more), 0.0)
    return numbers


async def _render(metric: Metric, numbers: Mapping[Labels, float]) -> list[bytes]:
    [family] = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    text = [f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n".encode()]
    # In the order of their names, as prometheus_client has them.
    places = sorted((label, place) for place, label in enumerate(metric._labelnames))  # noqa: SLF001 - told in no other way
    pattern = ",".join(f'{label}="{{{place}}}"' for label, place in places)
    line = f"{name}{{{{{pattern}}}}} {{{len(places)}}}\n".format
    async for some in _slices(numbers.items()):
        lines = (
            line(*(label.translate(_ESCAPES) for label in labels), number)
            for labels, number in some
        )
        text.append("".join(lines).encode())
    return text


def _few() -> bytes:
    """Return what is not by workspace; of this prometheus_client takes care."""
    if BY_WORKSPACE.folder is None:
        return generate_latest(REGISTRY)
    files = [path for path in BY_WORKSPACE.folder.glob("*.db") if _has_begun(path)]
    return generate_latest(_Read(MultiProcessCollector.merge(files)))  # type: ignore[no-untyped-call]


def _has_begun(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False  # its worker has ended meanwhile


class _Read(Collector):
    """Metrics as they were read."""

    def __init__(self, metrics: Iterable[Family]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Family]:
        return self._metrics
