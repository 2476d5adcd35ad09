"""`dashboard`: the panels of the Grafana dashboard as one picture, over minutes with faults.

Gateways, their servers and a Prometheus run here; Prometheus evaluates the panels' expressions.
"""

import argparse
import asyncio
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from random import Random
from typing import NamedTuple

import msgspec
from matplotlib import rc_context
from matplotlib.figure import Figure

from bench.testbed.callbacks import SECRET, get_request, parameters
from bench.testbed.callers import Callers
from bench.testbed.console import Progress
from bench.testbed.environment import Environment, open_environment
from bench.testbed.prometheus import MONITORING, Prometheus
from bench.testbed.prometheus import run as run_prometheus
from bench.testbed.results import Commands

FILE = MONITORING / "dashboard.json"
PICTURE = MONITORING / "dashboard.png"
SCRAPE_S = 1.0
RATE_WINDOW = "10s"
CALLBACKS_PER_S = 150.0
COLUMNS = 4
GATEWAYS = 2
# Of a hundred callbacks: duplicates, with an unknown app, unmapped, with a wrong secret.
DUPLICATE, UNKNOWN, UNMAPPED, WRONG_SECRET = 15, 1, 4, 1

Line = tuple[str, Sequence[tuple[float, float]]]


class Target(msgspec.Struct, rename="camel"):
    """An expression, and the legend of its series."""

    expr: str
    legend_format: str = ""


class Panel(msgspec.Struct):
    """A panel of the dashboard; a row has no targets."""

    title: str
    targets: list[Target] = []


class Annotations(msgspec.Struct):
    """The annotations of the dashboard."""

    list: list[Target]


class Dashboard(msgspec.Struct):
    """The parts of a dashboard's JSON with expressions."""

    panels: list[Panel]
    annotations: Annotations


class Drawn(NamedTuple):
    """A panel, and its series by legend, over the seconds since the start."""

    title: str
    lines: Sequence[Line]


def read(path: Path = FILE) -> Dashboard:
    """Read a dashboard's JSON."""
    return msgspec.json.decode(path.read_bytes(), type=Dashboard)


def expressions_of(dashboard: Dashboard) -> Iterator[str]:
    """Yield every expression of a dashboard, those of its annotations too."""
    for panel in dashboard.panels:
        yield from (target.expr for target in panel.targets)
    yield from (annotation.expr for annotation in dashboard.annotations.list)


def fill(expression: str, rate: str = "1m") -> str:
    """Return an expression with Grafana's variables filled in."""
    return expression.replace("$__rate_interval", rate).replace("$workspace", ".*")


def _request(gateway: int, number: int) -> tuple[str, bytes]:
    number = GATEWAYS * number + gateway
    random = Random(number)  # noqa: S311 - repeatable
    dice = random.randrange(100) - DUPLICATE
    sent = parameters(number if dice >= 0 else number - GATEWAYS, random)
    changes = ["app_token"] * UNKNOWN + ["event_token"] * UNMAPPED
    if 0 <= dice < len(changes):
        sent[changes[dice]] = "unknown"
    secret = "wrong" if len(changes) <= dice < len(changes) + WRONG_SECRET else SECRET
    return "", get_request(sent | {"created_at": str(int(datetime.now(UTC).timestamp()))}, secret)


async def _inject_faults(environment: Environment, progress: Progress, duration_s: float) -> None:
    part_s = duration_s / 10
    progress.step("no fault")
    await asyncio.sleep(3 * part_s)
    progress.step("Redis out of reach of one of two gateways")
    environment.gateways[0].redis.blackhole()
    await asyncio.sleep(2 * part_s)
    environment.gateways[0].redis.restore()
    await asyncio.sleep(part_s)
    progress.step("the database stopped")
    environment.servers.postgres.pause()
    await asyncio.sleep(part_s)
    environment.servers.postgres.resume()
    await asyncio.sleep(3 * part_s)


async def run(progress: Progress, picture: Path, duration_s: float) -> list[str]:
    """Draw the picture, and return the titles of empty panels.

    Raises EmbeddedError and BenchError.
    """
    secrets = {"ADJUST_CALLBACK_SECRET": f"{SECRET},the-old-one"}
    async with open_environment(gateways=GATEWAYS, settings=secrets) as environment:
        ports = [gateway.port for gateway in environment.gateways]
        async with run_prometheus(environment.folder, ports, SCRAPE_S) as prometheus:
            callers = [Callers(port, partial(_request, n)) for n, port in enumerate(ports)]
            offers = [
                asyncio.create_task(each.offer(CALLBACKS_PER_S, duration_s)) for each in callers
            ]
            started = time.time()
            try:
                await _inject_faults(environment, progress, duration_s)
                panels = [panel for panel in read().panels if panel.targets]
                drawn = [await _evaluate(prometheus, panel, started) for panel in panels]
            finally:
                for offer in offers:
                    offer.cancel()
                await asyncio.gather(*offers, return_exceptions=True)
                for each in callers:
                    each.close()
    _draw(drawn, picture)
    return [panel.title for panel in drawn if not panel.lines]


async def _evaluate(prometheus: Prometheus, panel: Panel, started: float) -> Drawn:
    lines: list[Line] = []
    for target in panel.targets:
        expression = fill(target.expr, RATE_WINDOW)
        for series in await prometheus.query_range(expression, started, time.time(), SCRAPE_S):
            legend = re.sub(
                r"{{(\w+)}}", partial(_label, labels=series.labels), target.legend_format
            )
            lines.append(
                (legend, [(at - started, v) for at, v in series.values if math.isfinite(v)])
            )
    return Drawn(panel.title, lines)


def _label(match: re.Match[str], labels: Mapping[str, str]) -> str:
    return labels.get(match[1], "")


def _draw(panels: Sequence[Drawn], picture: Path) -> None:
    rows = -(-len(panels) // COLUMNS)
    with rc_context({"font.size": 7, "axes.grid": True, "grid.linewidth": 0.3}):
        figure = Figure(figsize=(16, 2.2 * rows), dpi=72, layout="constrained")
        for place, panel in enumerate(panels, 1):
            axes = figure.add_subplot(rows, COLUMNS, place, title=panel.title)
            for legend, points in panel.lines:
                axes.plot([at for at, _ in points], [value for _, value in points], label=legend)
            axes.set_ylim(bottom=0)
            if panel.lines:
                axes.legend(fontsize=5, frameon=False, loc="center left")
        figure.savefig(picture, metadata={"Software": None})


def add_command(commands: Commands) -> None:
    """Add `dashboard` to the commands of the bench."""
    text = "the panels of the dashboard over minutes with faults, as a picture"
    parser = commands.add_parser("dashboard", help=text, description=text)
    parser.add_argument("--seconds", type=float, default=120, help="duration of the run")
    parser.add_argument("--picture", type=Path, default=PICTURE, help="the PNG to write")
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    with Progress(1, "pictures") as progress:
        empty = await run(progress, arguments.picture, arguments.seconds)
    print(f"drawn: {arguments.picture}")
    if empty:
        print(f"without data: {', '.join(empty)}")
    return bool(empty)
