"""`cells`: the map by which a proxy sends each app to its cell, and the SQL of a hub."""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

import msgspec

import adapters
from app import workspaces_file
from app.commands.hub import HubCell, hub_sql
from app.settings import read_settings
from app.workspaces_file import Apps, WorkspacesError, key_of

DESCRIPTION = """\
Print the map by which the proxy in front of several cells sends each callback to the cell of its
app: a line for each app of the workspaces file, sorted. Or print the SQL of a hub, which is one
PostgreSQL for analysts that reads the tables of all cells.

  adjust/abc123token eu-1      for HAProxy: vendor, app token as it is decoded, cell
  "adjust/abc123token" eu-1;   with --nginx: lines to include in a `map`
  CREATE SERVER "eu-1" ...     with --hub: a file for psql

After every change of the file print the map again and load it into the proxy (docs/cells.md), and
after one that concerns cells print the SQL and run it in the hub (docs/hub.md).

Needs WORKSPACES_FILE.
"""
EPILOG = """\
examples:
  python -m app cells > cells.map
  python -m app cells --hub > hub.sql

exit code: 0 printed, 2 the file is wrong, no app has a cell, or a name does not fit
"""
_WHITE_SPACE = re.compile(r"\s")


class _Options(msgspec.Struct):
    nginx: bool
    hub: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and a longer description."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--nginx", action="store_true", help="print the lines of an nginx map")
    output.add_argument("--hub", action="store_true", help="print the SQL of a hub, for psql")


def run(arguments: argparse.Namespace) -> int:
    """Print the map, or the SQL; raises SettingsError and WorkspacesError."""
    options = msgspec.convert(vars(arguments), _Options)
    settings = read_settings(required=["WORKSPACES_FILE"])
    apps = workspaces_file.read(Path(settings.workspaces_file), adapters.load())
    if not (cells := workspaces_file.cells_of(apps)):
        raise WorkspacesError("no app has a `cell`: there is nothing to route by")
    if options.hub:
        text = hub_sql([HubCell(cell, _workspaces_in(cell, apps)) for cell in cells])
    else:
        lines = nginx_map(apps) if options.nginx else haproxy_map(apps)
        text = "".join(f"{line}\n" for line in lines)
    # App tokens may hold any character, whatever the terminal's encoding is.
    sys.stdout.buffer.write(text.encode())
    return 0


def _workspaces_in(cell: str, apps: Apps) -> Sequence[str]:
    """Return the workspaces with an app in a cell, in order."""
    return sorted({app.workspace_id for app in apps.values() if app.cell == cell})


def haproxy_map(apps: Apps) -> Iterator[str]:
    """Yield the lines of a map for HAProxy, which decodes the app token of a URL.

    Raises WorkspacesError for a token with white space, which ends a key of the map.
    """
    for (vendor, app_token), app in sorted(apps.items()):
        if _WHITE_SPACE.search(app_token):
            raise WorkspacesError(
                f"App token {app_token!r} of {vendor} holds white space, which no map of HAProxy "
                "can hold"
            )
        yield f"{key_of(vendor, app_token)} {app.cell}"


def nginx_map(apps: Apps) -> Iterator[str]:
    """Yield the lines of an nginx map; it compares the token as a URL has it, ignoring case.

    Tokens of several cells that differ in case only are regular expressions, which respect it.
    """
    alike: defaultdict[str, dict[str, str]] = defaultdict(dict)
    for (vendor, app_token), app in sorted(apps.items()):
        key = key_of(vendor, quote(app_token, safe=""))
        alike[key.lower()][key] = app.cell
    for cells in alike.values():
        if len(set(cells.values())) == 1:
            key, cell = next(iter(cells.items()))
            yield f'"{key}" {cell};'
        else:
            yield from (f'"~^{re.escape(key)}$" {cell};' for key, cell in cells.items())
