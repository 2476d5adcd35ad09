"""`capacity`: how much of everything some rates of callbacks need, and what the autoscaler does."""

import argparse
import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from bench.capacity.costs import Costs, load, measure
from bench.capacity.manifests import MANIFESTS, read
from bench.capacity.model import RATES, Assumptions, Model, described
from bench.capacity.plots import draw
from bench.capacity.report import Report, print_report, write
from bench.capacity.scenarios import stories, tell, usual_rate
from bench.testbed.gateway import BenchError
from bench.testbed.machine import look_at_machine
from bench.testbed.report import Progress
from bench.testbed.results import add_options

SECONDS = 5.0


def add_command(commands: Any) -> None:
    """Add `capacity` to the commands of the bench."""
    text = "pods, databases, Redis, disk and network for 1k to 1M callbacks/s; and the autoscaler"
    assumed = "; ".join(f"{name}={value} ({why})" for name, value, why in described(Assumptions()))
    parser = commands.add_parser(
        "capacity",
        help=text,
        description=f"{text}, simulated. Half a minute of load measures what an event costs here.",
        epilog=f"Assumptions, and their defaults: {assumed}.",
    )
    parser.add_argument(
        "--costs",
        type=Path,
        help="costs.json of a former run, here or elsewhere: nothing is measured",
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="of load, four times (default: %(default)g)"
    )
    parser.add_argument(
        "--assume", action="append", default=[], metavar="NAME=VALUE", help="see below; repeatable"
    )
    parser.add_argument(
        "--manifests",
        type=Path,
        default=MANIFESTS,
        help="folder with the HorizontalPodAutoscaler and its Deployment (default: k8s/base)",
    )
    parser.add_argument(
        "--usual",
        type=float,
        help="callbacks/s before the spike (default: a tenth of what maxReplicas take)",
    )
    parser.add_argument("--picture", type=Path, help="also draw the simulation here: .svg or .png")
    add_options(parser)
    parser.set_defaults(run=_command)


def assumptions(words: Sequence[str]) -> Assumptions:
    """Return the defaults with what NAME=VALUE says instead; raises BenchError."""
    given: dict[str, object] = {}
    for word in words:
        name, _, value = word.partition("=")
        given[name] = value.split(",") if name == "retries_s" else value
    try:
        return msgspec.convert(given, Assumptions, strict=False)
    except msgspec.ValidationError as error:
        raise BenchError(f"--assume: {error}") from None


async def _command(arguments: argparse.Namespace) -> int:
    began = datetime.now(UTC)
    # First what may be wrong with what we were told.
    assumed = assumptions(arguments.assume)
    deployed = read(arguments.manifests)
    costs = await _costs(arguments)
    model = Model(costs, deployed, assumed)
    usual = arguments.usual or usual_rate(model)
    to_tell = stories(model, usual)
    told, runs = [], {}
    with Progress(len(to_tell), "stories") as progress:
        for number, (as_deployed, scenario) in enumerate(to_tell):
            progress.show(number)
            progress.say(scenario.name)
            story, moments = await asyncio.to_thread(tell, as_deployed, scenario)
            told.append(story)
            runs[scenario.name] = moments
    report = Report(
        began=began,
        machine=look_at_machine(costs.machine.servers if costs.machine else "not known"),
        costs=costs,
        assumed=assumed,
        deployed=deployed,
        needs=[model.need(rate) for rate in RATES],
        stories=told,
    )
    print_report(report)
    if arguments.picture is not None:
        draw(runs, deployed, arguments.picture)
    print(f"report: {write(report, runs, arguments.results)}")
    return 0


async def _costs(arguments: argparse.Namespace) -> Costs:
    if arguments.costs is not None:
        return load(arguments.costs)
    return await measure(arguments.seconds, arguments.folder)
