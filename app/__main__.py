"""The FloKit measurement gateway."""

import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec

from app import signals
from app.version import VERSION

COMMANDS: Mapping[str, str] = {
    "dev": "run everything on this machine, for a first look",
    "serve": "run the gateway on DATABASE_URL and REDIS_URL",
    "migrate": "bring the schema of DATABASE_URL up to date",
    "check": "check settings, workspaces, database and Redis",
    "retain": "delete events older than RETENTION_D",
}
NO_DEV = (
    "dev is not in this image: its database and Redis are for a developer's machine. "
    "Run `make run` in the repository"
)
FAILED, MISCONFIGURED, INTERRUPTED = 1, 2, 130


def main() -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 misconfigured."""
    signals.end_at_once()  # before any import that takes time
    command = _parse()
    if command == "dev" and find_spec("app.dev") is None:
        print(NO_DEV, file=sys.stderr)
        return MISCONFIGURED
    run = _load(command)
    if command != "serve":
        signals.interrupt()
    try:
        return run()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        prefix, exit_code = _expected(error)
        if not exit_code:
            raise
        print(f"{prefix}{error or type(error).__name__}", file=sys.stderr)
        return exit_code


def _parse() -> str:
    import argparse

    script = sys.argv[0].rpartition("/")[2]
    program = "python -m app" if script == "__main__.py" else script
    parser = argparse.ArgumentParser(prog=program, description=__doc__)
    parser.add_argument("--version", action="version", version=f"flokit-gateway {VERSION}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in COMMANDS.items():
        choices.add_parser(name, help=text, description=text)
    command: str = parser.parse_args().command
    return command


def _load(command: str) -> Callable[[], int]:
    """Import a command, which may take most of a second, and return its function."""
    match command:
        case "dev":
            from app.dev.command import run
        case "serve":
            from app.commands.serve import run
        case "migrate":
            from app.commands.migrate import run
        case "check":
            from app.commands.check import run
        case _:
            from app.commands.retain import run
    return run


def _expected(error: Exception) -> tuple[str, int]:
    """Return the subject and the exit code of an expected error; 0 for any other error."""
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
        case SchemaError() | ListenError():
            return "", FAILED
        case DatabaseError():
            return "database: ", FAILED
        case _:
            return "", 0


if __name__ == "__main__":
    sys.exit(main())
