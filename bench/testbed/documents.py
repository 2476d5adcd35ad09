"""Figures in the documentation: a command rewrites its own block with the table of its run."""

import argparse
import re
from pathlib import Path

from bench.testbed.machine import Machine
from bench.testbed.process import BenchError


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add `--document`."""
    parser.add_argument(
        "--document", type=Path, metavar="FILE",
        help="also rewrite the block of this command in a page of the documentation",
    )  # fmt: skip


def write(
    arguments: argparse.Namespace,
    command: str,
    machine: Machine,
    text: str,
    program: str = "python -m bench",
) -> None:
    """Rewrite the block of a command, if `--document` names a file; raises BenchError."""
    if arguments.document is not None:
        rewrite(arguments.document, command, machine, text, program)
        print(f"rewritten: {arguments.document}")


def rewrite(
    file: Path, command: str, machine: Machine, text: str, program: str = "python -m bench"
) -> None:
    """Replace the text between the markers of a command in a file; raises BenchError."""
    begin, end = (f"<!-- {word}: {program} {command} -->" for word in ("begin", "end"))
    head = (
        f"Commit {machine.commit[:7]}{'+' * machine.commit.endswith('+')}; {machine.processor}, "
        f"{machine.cores} cores; {machine.interpreter}; {machine.servers}."
    )
    block = f"{begin}\n{head}\n\n{text.strip()}\n{end}"
    page = file.read_text()
    found = re.findall(f"{re.escape(begin)}.*?{re.escape(end)}", page, re.DOTALL)
    if len(found) != 1 or page.count(begin) != 1 or page.count(end) != 1:
        raise BenchError(f"{file}: not one block {begin}")
    file.write_text(page.replace(found[0], block))
