"""A real Prometheus, Debian's, on loopback: it scrapes gateways by the project's own rules."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlencode

import msgspec

from app.dev.embedded import EmbeddedError, unpack
from app.dev.processes import free_port
from bench.testbed.client import fetch
from bench.testbed.process import OK, PATIENCE_S, POLL_S, ROOT, BenchError, Program

MONITORING = ROOT / "k8s/monitoring"


class Series(NamedTuple):
    """The labels of a series, and its values by time (seconds since 1970)."""

    labels: Mapping[str, str]
    values: Sequence[tuple[float, float]]


def find_program(name: str) -> Path:
    """Return `prometheus` or `promtool`: Debian's, or the host's. Raises EmbeddedError."""
    try:
        return unpack(["prometheus"]) / "usr/bin" / name
    except EmbeddedError:
        found = shutil.which(name)
        if found is None:
            raise
        return Path(found)


class _Answer(msgspec.Struct):
    data: msgspec.Raw


class _Vector(msgspec.Struct):
    value: tuple[float, str]
    metric: dict[str, str] = {}


class _Matrix(msgspec.Struct):
    values: list[tuple[float, str]]
    metric: dict[str, str] = {}


class _Result(msgspec.Struct, rename="camel"):
    result_type: str
    result: msgspec.Raw


class Prometheus:
    """A running Prometheus; raises BenchError where it refuses a query."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def query(self, expression: str) -> list[tuple[Mapping[str, str], float]]:
        """Return the present values of an expression, with their labels."""
        answer = await self._results("query", {"query": expression})
        if answer.result_type == "scalar":
            _, value = msgspec.json.decode(answer.result, type=tuple[float, str])
            return [({}, float(value))]
        found = msgspec.json.decode(answer.result, type=list[_Vector])
        return [(each.metric, float(each.value[1])) for each in found]

    async def query_range(
        self, expression: str, start: float, end: float, step_s: float
    ) -> list[Series]:
        """Return the values of an expression over a span of time."""
        span = {"start": str(start), "end": str(end), "step": str(step_s)}
        answer = await self._results("query_range", {"query": expression} | span)
        found = msgspec.json.decode(answer.result, type=list[_Matrix])
        return [
            Series(each.metric, [(moment, float(value)) for moment, value in each.values])
            for each in found
        ]

    async def _results(self, path: str, parameters: dict[str, str]) -> _Result:
        return msgspec.json.decode(await self.get(path, parameters), type=_Result)

    async def get(self, path: str, parameters: dict[str, str] | None = None) -> msgspec.Raw:
        """Return the data of an answer of the HTTP API, as JSON."""
        target = f"/api/v1/{path}?{urlencode(parameters or {})}"
        answer = await asyncio.to_thread(fetch, self._port, target, PATIENCE_S)
        if answer.status != OK:
            raise BenchError(answer.body.decode() or "Prometheus does not answer")
        return msgspec.json.decode(answer.body, type=_Answer).data

    async def wait_until_scraped(self, gateways: int) -> None:
        """Return after the first scrape of so many: a later rise of a counter is seen."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(BenchError):
                if await self.query(f"sum(up) == {gateways}"):
                    return
            if time.monotonic() > deadline:
                raise BenchError(f"Prometheus does not scrape {gateways} gateways")
            await asyncio.sleep(POLL_S)


@asynccontextmanager
async def run(folder: Path, ports: Sequence[int], interval_s: float) -> AsyncIterator[Prometheus]:
    """Run Prometheus on the gateways of these ports, each as a pod of its own.

    It scrapes them, and evaluates the rules, every `interval_s`; the first scrape is over. Raises
    EmbeddedError and BenchError.
    """
    targets = "".join(
        f'\n      - targets: ["127.0.0.1:{port}"]'
        f'\n        labels: {{namespace: flokit, pod: "gateway-{number}"}}'
        for number, port in enumerate(ports)
    )
    text = (MONITORING / "prometheus.yaml").read_text()
    for written, used in {
        "scrape_interval: 15s": f"scrape_interval: {interval_s * 1000:.0f}ms",
        "evaluation_interval: 15s": f"evaluation_interval: {interval_s * 1000:.0f}ms",
        "rule_files: [alerts.yaml]": f"rule_files: [{MONITORING}/alerts.yaml]",
        '\n      - targets: ["gateway:8000"]': targets,
    }.items():
        assert text.count(written) == 1, f"not in prometheus.yaml: {written}"
        text = text.replace(written, used)
    config, port = folder / "prometheus.yaml", free_port()
    config.write_text(text)
    command = [str(find_program("prometheus")), f"--config.file={config}", "--log.level=warn"]
    command += [f"--storage.tsdb.path={folder}/prometheus"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    with Program(command, folder / "prometheus.log"):
        prometheus = Prometheus(port)
        await prometheus.wait_until_scraped(len(ports))
        yield prometheus
