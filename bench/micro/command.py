"""`micro`: the cost of single parts of the gateway, for an event.

Medians of alternating rounds: a slow moment of the machine hits every part alike. Parts without a
server are measured in CPU time, the others in wall-clock time.
"""

import argparse
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from bench.micro.part import Run
from bench.micro.parts import PARTS
from bench.testbed import documents
from bench.testbed.console import markdown_table
from bench.testbed.environment import open_environment
from bench.testbed.figures import median_of
from bench.testbed.machine import describe_machine
from bench.testbed.process import BenchError
from bench.testbed.results import Commands

ROUNDS = 9
# Of one part in one round.
ROUND_S = 0.05
HEADINGS = ("part", "", "µs an event", "fastest round", "slowest round")


def add_command(commands: Commands) -> None:
    """Add `micro` to the commands of the bench."""
    text = "the cost of single parts of the gateway, for an event"
    parser = commands.add_parser("micro", help=text, description=text)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(PARTS)}; else all of them")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    documents.add_option(parser)
    parser.set_defaults(run=_command)


async def measure(names: Sequence[str], rounds: int) -> tuple[Mapping[str, list[float]], str]:
    """Return the microseconds an event of each round, by part, and the servers in use.

    Raises EmbeddedError and BenchError.
    """
    if unknown := set(names) - PARTS.keys():
        raise BenchError(f"unknown parts: {', '.join(sorted(unknown))}")
    found: dict[str, list[float]] = {name: [] for name in names}
    async with AsyncExitStack() as stack:
        environment, servers = None, "no servers"
        if any(PARTS[name].needs_servers for name in names):
            environment = await stack.enter_async_context(open_environment(gateways=0))
            servers = environment.servers.description
        runs = {
            name: await stack.enter_async_context(PARTS[name].prepare(environment))
            for name in names
        }
        numbers = {name: await _calibrate(run) for name, run in runs.items()}
        for _ in range(rounds):
            for name, run in runs.items():
                taken_s = await run(numbers[name])
                found[name].append(1e6 * taken_s / numbers[name] / PARTS[name].events)
    return found, servers


async def _calibrate(run: Run) -> int:
    """Return the number of runs of one round; warms up as well."""
    number = 1
    while (taken_s := await run(number)) < ROUND_S / 4:
        number *= 2
    return max(1, int(number * ROUND_S / taken_s))


async def _command(arguments: argparse.Namespace) -> int:
    found, servers = await measure(arguments.names or list(PARTS), arguments.rounds)
    machine = describe_machine(servers)
    text = markdown_table(HEADINGS, [
        (name, PARTS[name].text, *(f"{f(values):.2f}" for f in (median_of, min, max)))
        for name, values in found.items()
    ])  # fmt: skip
    print(f"{machine.interpreter}, {machine.processor}; {servers}\n\n{text}")
    documents.write(arguments, "micro", machine, text)
    return 0
