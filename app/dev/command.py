"""`dev`: run everything on this machine, for a first look."""

import argparse
import asyncio
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from app.commands.migrate import migrate
from app.dev import embedded
from app.http.lifecycle import serve
from app.http.server import listen
from app.settings import SettingsError, read_settings
from app.telemetry import logs

FOLDER = Path("data")
DEFAULTS = {
    "HOST": "127.0.0.1",
    "WORKSPACES_FILE": str(FOLDER / "workspaces.toml"),
    "ADJUST_CALLBACK_SECRET": "demo-secret",  # enough for a server on loopback
    "DRAIN_PAUSE_S": "0",
    "LOG_LEVEL": "warning",
}
WORKSPACES = """\
# The demo workspace. Edit it while the gateway runs: it is reloaded within 5 seconds.
[[workspaces]]
id = "ws_demo"

[[workspaces.apps]]
vendor = "adjust"
app_token = "abc123token"
events = { g3mz3t = "purchase" }
activities = { install = "app_install" }
"""
# The example of the endpoint's documentation.
CALLBACK = (
    "app_token=abc123token&event_token=g3mz3t&activity_kind=event&created_at=1750500000"
    "&os_name=ios&country=us&adid=1a2b3c&revenue=49.99&currency=USD&user_id=usr_abc123"
)
QUERY = "SELECT occurred_at, event_type, user_id, properties FROM events"

# The settings that commands in another terminal need.
SERVERS = ("DATABASE_URL", "REDIS_URL")
SETTINGS = ("WORKSPACES_FILE", "ADJUST_CALLBACK_SECRET")
DESCRIPTION = """\
Run a database, a Redis and the gateway on this machine, for a first look, until Ctrl-C. It prints a
callback to send, and a line that gives other commands its settings, such as `tail`.

The gateway listens on PORT (8000). Everything is stored in the folder data/, where the next start
finds it; delete the folder to begin anew. With DATABASE_URL and REDIS_URL no servers are started.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the description; there are no arguments."""
    parser.description = DESCRIPTION


def run(_: argparse.Namespace) -> int:
    """Start the servers, a demo workspace and the gateway; Ctrl-C stops all of them."""
    environ = DEFAULTS | {name: value for name, value in os.environ.items() if value}
    # Wrong settings and a port in use are reported before a server starts.
    settings = read_settings(environ, required=[])
    try:
        with listen(settings) as listener, _services(environ) as psql:
            settings = read_settings(environ)
            logs.configure(settings.log_level)
            _write_workspaces(Path(settings.workspaces_file))
            asyncio.run(migrate(settings.database_url))
            secret = quote(settings.vendors["adjust"].secrets[0], safe="")
            url = f"http://{settings.host}:{settings.port}/ingest/adjust?secret={secret}&{CALLBACK}"
            print(
                f"\nThe gateway is ready. Send a callback:\n\n  curl {shlex.quote(url)}\n\n"
                f"Read the row:\n\n  {psql} -c {shlex.quote(QUERY)}\n\n"
                f"Use the other commands, such as `tail`, in another terminal, after:\n\n"
                f"  {_export(environ)}\n\n"
                f"The workspaces are in {settings.workspaces_file}, all other data in {FOLDER}/.\n"
                "Ctrl-C stops the gateway and its servers; the events stay.\n",
                flush=True,
            )
            serve(settings, listener)
    except embedded.EmbeddedError as error:
        print(error, file=sys.stderr)
        return 1
    print("stopped")
    return 0


@contextmanager
def _services(environ: dict[str, str]) -> Iterator[str]:
    """Start the servers and add their URLs to `environ`; yields the command line of psql."""
    if _has_servers(environ):
        yield 'psql "$DATABASE_URL"'  # without the password of the user's own server
        return
    with embedded.start(FOLDER) as servers:
        print(servers.description, flush=True)
        environ |= {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
        yield f"{servers.psql} {servers.database_url}"


def _has_servers(environ: Mapping[str, str]) -> bool:
    return all(map(environ.get, SERVERS))


def _export(environ: Mapping[str, str]) -> str:
    """Return the line that gives a shell the settings, without the URLs of the user's servers."""
    names = SETTINGS if _has_servers(os.environ) else (*SERVERS, *SETTINGS)
    return f"export {' '.join(f'{name}={shlex.quote(environ[name])}' for name in names)}"


def _write_workspaces(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(WORKSPACES)
    except OSError as error:
        raise SettingsError(f"WORKSPACES_FILE: {path}: {error.strerror}") from None
