"""A real Prometheus, Debian's, on loopback: it scrapes gateways by the project's own rules."""

import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

from app.dev.embedded import EmbeddedError, unpack
from app.dev.processes import free_port
from bench.testbed.gateway import PATIENCE_S, POLL_S, BenchError, bound

MONITORING = Path(__file__).parents[2] / "k8s/monitoring"

Labels = dict[str, str]


def find_program(name: str) -> Path:
    """Return `prometheus` or `promtool`: Debian's, or the host's. Raises EmbeddedError."""
    try:
        return unpack(["prometheus"]) / "usr/bin" / name
    except EmbeddedError:
        found = shutil.which(name)
        if found is None:
            raise
        return Path(found)


class Prometheus:
    """A running Prometheus; queries raise BenchError where it does not like them."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def query(self, expression: str) -> list[tuple[Labels, float]]:
        """Return what an expression is now, by labels."""
        data = await self.get("query", {"query": expression})
        found = [data] if data["resultType"] == "scalar" else data["result"]
        return [
            (series.get("metric", {}), float(series.get("value", series.get("result"))[1]))
            for series in found
        ]

    async def query_range(
        self, expression: str, start: float, end: float, step_s: float
    ) -> list[tuple[Labels, list[tuple[float, float]]]]:
        """Return what an expression was, by labels: times (seconds since 1970) and values."""
        span = {"start": str(start), "end": str(end), "step": str(step_s)}
        data = await self.get("query_range", {"query": expression} | span)
        return [
            (series["metric"], [(moment, float(value)) for moment, value in series["values"]])
            for series in data["result"]
        ]

    async def get(self, path: str, parameters: dict[str, str] | None = None) -> Any:
        """Return the data of an answer of the HTTP API."""
        return await asyncio.to_thread(self._get, f"{path}?{urlencode(parameters or {})}")

    async def wait_until_it_sees(self, gateways: int) -> None:
        """Return when it has scraped so many: it takes no rise from what it sees at first."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError, BenchError):  # it says itself that it is not ready
                if await self.query(f"sum(up) == {gateways}"):
                    return
            if time.monotonic() > deadline:
                raise BenchError(f"Prometheus does not see {gateways} gateways")
            await asyncio.sleep(POLL_S)

    def _get(self, target: str) -> Any:
        try:
            with urlopen(
                f"http://127.0.0.1:{self._port}/api/v1/{target}", timeout=PATIENCE_S
            ) as answer:
                return json.load(answer)["data"]
        except HTTPError as error:
            raise BenchError(error.read().decode()) from None


@asynccontextmanager
async def run(folder: Path, ports: Sequence[int], interval_s: float) -> AsyncIterator[Prometheus]:
    """Run Prometheus on what scrapes the gateways on these ports, each as a pod of its own.

    It looks at them, and evaluates the rules, every `interval_s`, and has done so once. Raises
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
    with (folder / "prometheus.log").open("ab") as log:
        process = subprocess.Popen(bound(command), stdout=log, stderr=log)  # noqa: ASYNC220
    try:
        prometheus = Prometheus(port)
        await prometheus.wait_until_it_sees(len(ports))
        yield prometheus
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait)
