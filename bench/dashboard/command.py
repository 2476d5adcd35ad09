"""`dashboard`: the panels of the dashboard over minutes with trouble, drawn without Grafana.

Gateways, their servers and a Prometheus run here; Prometheus evaluates the panels' own expressions,
and matplotlib draws what it says where Grafana would.
"""

import argparse
import asyncio
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from bench.dashboard.picture import draw
from bench.testbed.callbacks import APPS, EVENTS, SECRET, WORKSPACES, parameters, request, written
from bench.testbed.caller import Caller
from bench.testbed.environment import Stage, open_stage
from bench.testbed.gateway import Gateway
from bench.testbed.prometheus import MONITORING, Prometheus
from bench.testbed.prometheus import run as run_prometheus
from bench.testbed.report import Progress

FILE = MONITORING / "dashboard.json"
PICTURE = MONITORING / "dashboard.png"
SCRAPE_S = 1.0
RATE = "10s"
CONNECTIONS = 96
PAUSE_S = 0.25
TIMEOUT_S = 20.0
# Of a hundred callbacks: sent once more, to an app that is nobody's, with a token unmapped.
REPEATED, NOBODYS, UNMAPPED = 15, 1, 4


class Panel(NamedTuple):
    """A picture of the dashboard: where it is, in 24 columns, and expressions with legends."""

    title: str
    type: str
    unit: str
    place: Mapping[str, int]
    expressions: Sequence[tuple[str, str]]
    is_stacked: bool = False
    is_logarithmic: bool = False


def panels_of(dashboard: Mapping[str, Any]) -> list[Panel]:
    """Return the panels of a dashboard's JSON in order, rows among them."""
    return [_panel(panel) for panel in dashboard["panels"]]


def _panel(panel: Mapping[str, Any]) -> Panel:
    defaults = panel.get("fieldConfig", {}).get("defaults", {})
    custom = defaults.get("custom", {})
    return Panel(
        panel["title"],
        panel["type"],
        defaults.get("unit", ""),
        panel["gridPos"],
        [(target["expr"], target["legendFormat"]) for target in panel.get("targets", ())],
        is_stacked="stacking" in custom,
        is_logarithmic=custom.get("scaleDistribution", {}).get("type") == "log",
    )


def expressions_of(dashboard: Mapping[str, Any]) -> Iterator[str]:
    """Yield every expression of a dashboard's JSON, those of its annotations too."""
    for panel in panels_of(dashboard):
        yield from (expression for expression, _ in panel.expressions)
    yield from (annotation["expr"] for annotation in dashboard["annotations"]["list"])


def fill(expression: str, rate: str = "1m") -> str:
    """Return an expression with what Grafana puts in the place of its variables."""
    return expression.replace("$__rate_interval", rate).replace("$workspace", ".*")


class _Vendor:
    """Sends callbacks all the time, on many connections, to two gateways."""

    def __init__(self, gateways: Sequence[Gateway]) -> None:
        self._gateways = gateways
        self._random = Random(1)  # noqa: S311 - repeatable is wanted
        self.secret = SECRET

    async def call(self, number: int) -> None:
        caller, before = Caller(self._gateways[number % 2].port), b""
        while True:
            before = self._next(before)
            sent = before.replace(SECRET.encode(), self.secret.encode())
            await caller.send(sent, TIMEOUT_S)
            if caller.is_closed:
                caller = Caller(self._gateways[number % 2].port)
            await asyncio.sleep(PAUSE_S * self._random.random() * 2)

    def _next(self, before: bytes) -> bytes:
        random = self._random
        die = random.randrange(100)
        if before and die < REPEATED:
            return before
        app = random.choice(list(APPS))
        token = random.choice(list(EVENTS))
        sent = parameters(random.randrange(10**9), app, token, random)
        if die < REPEATED + NOBODYS:
            sent |= {"app_token": "nobodys"}
        elif die < REPEATED + NOBODYS + UNMAPPED:
            sent |= {"event_token": "unmapped"}
        return request(sent | {"created_at": written(datetime.now(UTC), random)}, random)


async def _go_through(stage: Stage, vendor: _Vendor, progress: Progress, duration_s: float) -> None:
    """What an operator may see in a bad week, in minutes."""
    part_s = duration_s / 12
    progress.say("all is well")
    await asyncio.sleep(3 * part_s)
    progress.say("Redis is out of reach of one of two gateways")
    stage.gateways[0].redis.blackhole()
    await asyncio.sleep(2 * part_s)
    stage.gateways[0].redis.restore()
    await asyncio.sleep(part_s)
    progress.say("the database stands still")
    stage.servers.postgres.pause()
    await asyncio.sleep(part_s)
    stage.servers.postgres.resume()
    await asyncio.sleep(2 * part_s)
    progress.say("a wrong secret")
    vendor.secret = "not-the-right-one"  # noqa: S105
    await asyncio.sleep(part_s)
    vendor.secret = SECRET
    progress.say("a change of the workspaces")
    (stage.folder / "workspaces.toml").write_text(WORKSPACES + "# Another file.\n")
    await asyncio.sleep(2 * part_s)


async def run(progress: Progress, picture: Path, duration_s: float) -> list[str]:
    """Draw the picture, and return the titles of panels that stayed empty.

    Raises EmbeddedError and BenchError.
    """
    secrets = {"ADJUST_CALLBACK_SECRET": f"{SECRET},the-old-one"}
    async with open_stage(settings=secrets) as stage:
        ports = [gateway.port for gateway in stage.gateways]
        async with run_prometheus(stage.folder, ports, SCRAPE_S) as prometheus:
            vendor = _Vendor(stage.gateways)
            calls = [asyncio.create_task(vendor.call(n)) for n in range(CONNECTIONS)]
            started = time.time()
            try:
                await _go_through(stage, vendor, progress, duration_s)
                series = await _ask(prometheus, started)
            finally:
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
    draw(series, picture)
    return [panel.title for panel, lines in series if panel.expressions and not lines]


async def _ask(prometheus: Prometheus, started: float) -> list[tuple[Panel, Any]]:
    now = time.time()
    series = []
    for panel in panels_of(json.loads(FILE.read_text())):
        lines = []
        for expression, legend in panel.expressions:
            found = await prometheus.query_range(fill(expression, RATE), started, now, SCRAPE_S)
            for labels, values in found:
                lines.append(
                    (
                        _named(legend, labels),
                        [(moment - started, value) for moment, value in values],
                    )
                )
        series.append((panel, lines))
    return series


def _named(legend: str, labels: Mapping[str, str]) -> str:
    """Return a legend with what Grafana puts in the place of its labels."""
    return re.sub(r"{{(\w+)}}", lambda label: labels.get(label[1], ""), legend)


def add_command(commands: Any) -> None:
    """Add `dashboard` to the commands of the bench."""
    text = "the panels of the dashboard over minutes with trouble, as a picture"
    parser = commands.add_parser("dashboard", help=text, description=text)
    parser.add_argument("--seconds", type=float, default=120, help="how long the story takes")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="where the PNG goes")
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    with Progress(1, "pictures") as progress:
        empty = await run(progress, arguments.picture, arguments.seconds)
    print(f"drawn: {arguments.picture}")
    if empty:
        print(f"without data: {', '.join(empty)}")
    return bool(empty)
