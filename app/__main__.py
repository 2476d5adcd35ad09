"""The commands: dev, serve, migrate, check, retain."""

from app import signals

if __name__ == "__main__":
    signals.end_at_once()  # the rest takes the better part of a second to import

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from app.commands import check
from app.dev import command as dev
from app.dev.embedded import EmbeddedError
from app.http import server as serve
from app.http.server import ListenError
from app.settings import Settings, SettingsError, read_settings
from app.version import VERSION
from app.workspaces_file import WorkspacesError
from sinks.timescale import hosts, retention, schema
from sinks.timescale.errors import AddressError, DatabaseError

CONNECT_TIMEOUT_S = 10.0

# What each expected error is about, and the exit code; the first that fits.
_EXIT_CODES: dict[type[Exception], tuple[str, int]] = {
    SettingsError: ("", 2),
    WorkspacesError: ("WORKSPACES_FILE: ", 2),
    AddressError: ("DATABASE_URL: ", 2),
    schema.SchemaError: ("", 1),
    ListenError: ("", 1),
    EmbeddedError: ("", 1),
    DatabaseError: ("database: ", 1),
    ConnectionError: ("database: ", 1),
    TimeoutError: ("database: ", 1),
}


def main() -> int:
    """Run one command and return its exit code: 0 done, 1 not done, 2 wrong settings."""
    signals.end_at_once()  # the console script has imported the rest before this
    commands = {
        "dev": (dev.run, "everything on this machine, for a first look"),
        "serve": (serve.run, "the gateway, on DATABASE_URL and REDIS_URL"),
        "migrate": (_migrate, "bring the schema of DATABASE_URL up to date"),
        "check": (check.run, "tell whether settings, workspaces, database and Redis are well"),
        "retain": (_retain, "delete what is older than RETENTION_D"),
    }
    parser = argparse.ArgumentParser(prog=_program(), description=__doc__)
    parser.add_argument("--version", action="version", version=f"flokit-gateway {VERSION}")
    choices = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, text) in commands.items():
        choices.add_parser(name, help=text, description=text)
    command = parser.parse_args().command
    run, _ = commands[command]
    if command != "serve":
        signals.interrupt()
    try:
        return run()
    except tuple(_EXIT_CODES) as error:
        place, code = next(_EXIT_CODES[kind] for kind in _EXIT_CODES if isinstance(error, kind))
        print(f"{place}{error or type(error).__name__}", file=sys.stderr)
        return code
    except KeyboardInterrupt:
        return 130


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "python -m app" if name == "__main__.py" else name


def _migrate() -> int:
    async def apply(connection: asyncpg.Connection, _: Settings) -> None:
        applied = await schema.migrate(connection)
        for name in applied:
            print(f"applied {name}")
        print("the schema is up to date")

    return asyncio.run(_with_database(apply))


def _retain() -> int:
    async def apply(connection: asyncpg.Connection, settings: Settings) -> None:
        if not settings.retention_d:
            print("RETENTION_D is 0: events are kept for ever")
            return
        async for line in retention.retain(connection, settings.retention_d):
            print(line, flush=True)

    return asyncio.run(_with_database(apply))


async def _with_database(
    work: Callable[[asyncpg.Connection, Settings], Awaitable[None]],
) -> int:
    settings = read_settings(required=["DATABASE_URL"])
    async with hosts.connected(settings.database_url, timeout_s=CONNECT_TIMEOUT_S) as connection:
        await work(connection, settings)
    return 0


if __name__ == "__main__":
    sys.exit(main())
