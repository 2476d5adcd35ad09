"""`capacity`: pods, cells, Redis, disk and network for some rates of callbacks."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.capacity.costs import Costs, load, measure
from bench.capacity.manifests import MANIFESTS, read
from bench.capacity.model import RATES, Assumptions, Model, described
from bench.capacity.report import CapacityResults, curve_rates, notes, plot, tables
from bench.testbed import documents, results
from bench.testbed.machine import describe_machine
from bench.testbed.process import BenchError

SECONDS = 5.0


def add_command(commands: results.Commands) -> None:
    """Add `capacity` to the commands of the bench."""
    text = "pods, cells, Redis, disk and network for 1k to 1M callbacks/s"
    assumed = "; ".join(f"{name}={value} ({why})" for name, value, why in described(Assumptions()))
    parser = commands.add_parser(
        "capacity",
        help=text,
        description=f"{text}. Half a minute of load measures the cost of an event on this machine.",
        epilog=f"Assumptions, and their defaults: {assumed}.",
    )
    parser.add_argument("--costs", type=Path, help="costs.json of a former run: no measurement")
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
    results.add_options(parser)
    documents.add_option(parser)
    parser.set_defaults(run=_command)


def assumptions(words: Sequence[str]) -> Assumptions:
    """Return the defaults, changed by each NAME=VALUE; raises BenchError."""
    given = {name: value for name, _, value in (word.partition("=") for word in words)}
    try:
        return msgspec.convert(given, Assumptions, strict=False)
    except msgspec.ValidationError as error:
        raise BenchError(f"--assume: {error}") from None


async def _command(arguments: argparse.Namespace) -> int:
    began = datetime.now(UTC)
    # Before half a minute of load: wrong options are found here.
    assumed = assumptions(arguments.assume)
    deployed = read(arguments.manifests)
    costs = await _costs(arguments)
    model = Model(costs, deployed, assumed)
    found = CapacityResults(
        began=began,
        ended=datetime.now(UTC),
        machine=costs.machine or describe_machine("servers not known"),
        schedule=None,
        costs=costs,
        assumed=assumed,
        deployed=deployed,
        needs=[model.need(rate) for rate in RATES],
        curve=[model.need(rate) for rate in curve_rates(RATES)],
    )
    text = tables(found)
    print(text, *notes(found), sep="\n")
    lines = [
        "# Capacity",
        "",
        *found.facts(),
        *(f"- {name} = {value}: {meaning}" for name, value, meaning in described(assumed)),
        "- another run can use `costs.json`: `--costs costs.json`",
        "",
        text,
        *(f"- {note}" for note in notes(found)),
        "",
    ]
    report = results.write(found, "capacity", arguments.results, lines, [plot(found)])
    (report.parent / "costs.json").write_bytes(msgspec.json.format(msgspec.json.encode(costs)))
    print(f"report: {report}")
    documents.write(arguments, "capacity", found.machine, text)
    return 0


async def _costs(arguments: argparse.Namespace) -> Costs:
    if arguments.costs is not None:
        return load(arguments.costs)
    return await measure(arguments.seconds, arguments.folder)
