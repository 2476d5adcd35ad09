"""Every metric as Prometheus text; the many series of workspaces in slices, to spare the loop."""

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

# Series rendered at once; the event loop runs between slices.
SLICE = 500
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

T = TypeVar("T")


async def exposition() -> bytes:
    """Return every metric, summed over the workers."""
    text = [_unsliced()]
    received: defaultdict[Labels, float] = defaultdict(float)
    for metric in BY_WORKSPACE:
        numbers = await _read(metric)
        if metric in OUTCOMES:
            # The sum of the values that are rendered here, so that it adds up.
            async for some in _slices(numbers.items()):
                for labels, number in some:
                    received[labels[:2]] += number
        text += await _render(metric, numbers)
    text += await _render(RECEIVED, received)
    return b"".join(text)


async def _slices(items: Iterable[T]) -> AsyncIterator[list[T]]:
    """Yield all items in slices, and let the event loop run between them."""
    iterator = iter(items)
    while some := list(islice(iterator, SLICE)):
        yield some
        await asyncio.sleep(0)


async def _read(metric: Metric) -> Mapping[Labels, float]:
    """Return the merged numbers of all workers, without those of removed workspaces."""
    merge = max if isinstance(metric, Gauge) else add
    tally = BY_WORKSPACE[metric]
    numbers: dict[Labels, float] = {}
    for of_worker in BY_WORKSPACE.read(metric):
        async for some in _slices(of_worker):
            for labels, number in some:
                if tally.is_wanted(labels):
                    numbers[labels] = merge(numbers.get(labels, 0.0), number)
    initial = BY_WORKSPACE.of_callbacks.get(metric, ())
    async for pairs in _slices(BY_WORKSPACE.in_use if initial else ()):
        for pair in pairs:
            for further in initial:
                numbers.setdefault((*pair, *further), 0.0)
    return numbers


async def _render(metric: Metric, numbers: Mapping[Labels, float]) -> list[bytes]:
    [family] = metric.describe()
    name = f"{family.name}_total" if family.type == "counter" else family.name
    text = [f"# HELP {name} {family.documentation}\n# TYPE {name} {family.type}\n".encode()]
    # Labels sorted by name, as prometheus_client renders them.
    places = sorted((label, place) for place, label in enumerate(metric._labelnames))  # noqa: SLF001 - there is no public attribute
    pattern = ",".join(f'{label}="{{{place}}}"' for label, place in places)
    line = f"{name}{{{{{pattern}}}}} {{{len(places)}}}\n".format
    async for some in _slices(numbers.items()):
        lines = (
            line(*(label.translate(_ESCAPES) for label in labels), number)
            for labels, number in some
        )
        text.append("".join(lines).encode())
    return text


def _unsliced() -> bytes:
    """Return the metrics that are not by workspace, as prometheus_client renders them."""
    if BY_WORKSPACE.folder is None:
        return generate_latest(REGISTRY)
    files = [path for path in BY_WORKSPACE.folder.glob("*.db") if _is_written(path)]
    return generate_latest(_Collected(MultiProcessCollector.merge(files)))  # type: ignore[no-untyped-call]


def _is_written(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False  # removed with its worker


class _Collected(Collector):
    """Metrics that have been read already."""

    def __init__(self, metrics: Iterable[Family]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Family]:
        return self._metrics
