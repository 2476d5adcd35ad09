"""The FloKit measurement gateway."""

import argparse
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, runtime_checkable

from app import signals
from app.version import VERSION

COMMANDS: Mapping[str, str] = {
    "dev": "run everything on this machine, for a first look",
    "serve": "run the gateway on DATABASE_URL and REDIS_URL",
    "migrate": "bring the schema of DATABASE_URL up to date",
    "check": "check settings, workspaces, database and Redis",
    "explain": "show what a callback becomes, and why, without sending it",
    "dropped": "list the dropped callbacks in quarantine, and how to get them back",
    "unmapped": "list the events that arrive without a mapping, with lines to paste",
    "tail": "show callbacks and their outcomes as they arrive",
    "replay": "write dropped callbacks out of quarantine, through the present mapping",
    "cells": "print the map by which a proxy sends each app to its cell, or the SQL of a hub",
    "retain": "delete events older than RETENTION_D, and drops older than QUARANTINE_D",
}
NO_DEV = (
    "dev is not in this image: its database and Redis are for a developer's machine. "
    "Run `make run` in the repository"
)
FAILED, MISCONFIGURED, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141


class Command(Protocol):
    """A module of `app.commands`, or of `app.dev`."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Run the command, and return its exit code."""
        ...


@runtime_checkable
class HasArguments(Protocol):
    """A command with arguments of its own."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the arguments, and a longer description."""
        ...


def main() -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 misconfigured."""
    signals.end_at_once()  # before any import that takes time
    name = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    is_present = name in COMMANDS and (name != "dev" or find_spec("app.dev") is not None)
    # Only this one: an import may take most of a second.
    command = _load(name) if is_present else None
    arguments = _parse(name, command)
    if command is None:  # the parser ends the process for an unknown name
        print(NO_DEV, file=sys.stderr)
        return MISCONFIGURED
    if name != "serve":
        signals.interrupt()
    try:
        exit_code = command.run(arguments)
        sys.stdout.flush()
        return exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        prefix, exit_code = _expected(error)
        if not exit_code:
            raise
        print(f"{prefix}{error or type(error).__name__}", file=sys.stderr)
        return exit_code


def _load(name: str) -> Command:
    command: Command = import_module("app.dev.command" if name == "dev" else f"app.commands.{name}")
    return command


def _parse(name: str, command: object) -> argparse.Namespace:
    script = sys.argv[0].rpartition("/")[2]
    program = "python -m app" if script == "__main__.py" else script
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--version", action="version", version=f"flokit-gateway {VERSION}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for each, text in COMMANDS.items():
        chosen = choices.add_parser(
            each,
            help=text,
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if each == name and isinstance(command, HasArguments):
            command.add_arguments(chosen)
    arguments, unknown = parser.parse_known_args()
    if unknown:
        # Not their text: it may hold a secret.
        parser.error(f"{len(unknown)} unrecognized arguments: see {parser.prog} {name} --help")
    return arguments


def _expected(error: Exception) -> tuple[str, int]:
    """Return the subject and the exit code of an expected error; 0 for any other error."""
    from app.commands.selection import SourceError
    from app.http.server import ListenError
    from app.settings import SettingsError
    from app.workspaces_file import WorkspacesError
    from sinks.timescale.errors import AddressError, DatabaseError
    from sinks.timescale.schema import SchemaError

    match error:
        case SettingsError():
            return "", MISCONFIGURED
        case WorkspacesError():
            return "WORKSPACES_FILE: ", MISCONFIGURED
        case AddressError():
            return "DATABASE_URL: ", MISCONFIGURED
        case SchemaError() | ListenError() | SourceError():
            return "", FAILED
        case DatabaseError():
            return "database: ", FAILED
        case _:
            return "", 0


if __name__ == "__main__":
    sys.exit(main())
