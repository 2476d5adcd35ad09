"""`sabotage`: gateways that break the contract on purpose, and the verdict on each."""

import argparse
import time
from collections.abc import Collection

from bench.sabotage.catalogue import SABOTAGES
from bench.sabotage.run import Findings, run_sabotage
from bench.sabotage.sabotage import Found, Sabotage, Scenario
from bench.testbed import documents
from bench.testbed.console import Progress, markdown_table, print_table
from bench.testbed.machine import describe_machine
from bench.testbed.process import BenchError
from bench.testbed.results import Commands

HEADINGS = ("sabotage", "broken sentence", "faults", "verdict", "seconds")


def add_command(commands: Commands) -> None:
    """Add `sabotage` to the commands of the bench."""
    text = "gateways that break the contract on purpose: the oracle must find each of them"
    parser = commands.add_parser("sabotage", help=text, description=text)
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="these alone; all of them by default"
    )
    parser.add_argument("--list", action="store_true", help="print their names, and run none")
    parser.add_argument(
        "--real",
        action="store_true",
        help="run the real gateway in the same way: it must not earn any verdict",
    )
    documents.add_option(parser)
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    if unknown := set(arguments.names) - SABOTAGES.keys():
        raise BenchError(f"no such sabotage: {', '.join(sorted(unknown))}; see --list")
    sabotages = [SABOTAGES[name] for name in arguments.names or SABOTAGES]
    if arguments.list:
        print_table(HEADINGS[:3], [_head(sabotage) for sabotage in sabotages])
        return 0
    if arguments.document is not None and (arguments.names or arguments.real):
        raise BenchError("--document is for the table of all sabotages: no names, and no --real")
    if arguments.real:  # some do without a patch, by the database alone
        sabotages = [sabotage for sabotage in sabotages if sabotage.is_patch]
    rows: list[tuple[object, ...]] = []
    wrong: list[str] = []
    machine = describe_machine("")
    for place, sabotage in enumerate(sabotages, 1):
        started = time.monotonic()
        with Progress(sabotage.callbacks, f"callbacks, {place} of {len(sabotages)}") as progress:
            progress.step(sabotage.name)
            try:
                findings = await run_sabotage(sabotage, progress, is_real=arguments.real)
            except BenchError as error:
                wrong.append(str(error))
                continue
            progress.step(f"{sabotage.name}: {_verdict(findings)}")
        seconds, machine = time.monotonic() - started, findings.machine
        rows.append((*_head(sabotage), _verdict(findings), seconds))
        if not is_right(sabotage, findings.reasons, is_real=arguments.real):
            wrong.append(f"{sabotage.name}: {_verdict(findings)}, {findings.reasons}")
    table = markdown_table(HEADINGS, rows)
    print(table, *wrong, sep="\n")
    if wrong:
        return 1
    documents.write(arguments, "sabotage", machine, table)
    return 0


def is_right(sabotage: Sabotage, found: Collection[Found], *, is_real: bool) -> bool:
    """Whether a sabotaged gateway, or the real one in the same run, has the verdicts it must."""
    if is_real:
        return set(found) <= set(sabotage.unavoidable)
    return not sabotage.accepted.isdisjoint(found)


def _head(sabotage: Sabotage) -> tuple[str, str, str]:
    return sabotage.name, sabotage.sentence, _faults(sabotage)


def _faults(sabotage: Sabotage) -> str:
    if sabotage.scenario is not Scenario.FAULTS:
        return str(sabotage.scenario.value)
    return ", ".join(dict.fromkeys(sabotage.faults)) or "none"


def _verdict(findings: Findings) -> str:
    return ", ".join(found.value for found in findings.reasons) or "clean"
