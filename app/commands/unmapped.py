"""`unmapped`: the vendor's events that arrive without a mapping, with lines to paste."""

import argparse
import asyncio
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import msgspec

import adapters
from app import workspaces_file
from app.commands.likeness import Likeness, Section, likeness, parameters_of
from app.commands.output import (
    NOTHING,
    json_line,
    minute,
    printable,
    table,
    toml_key,
    toml_string,
)
from app.commands.selection import add_apps, add_times, selection_of
from app.event import App
from app.settings import Settings, read_settings
from sinks.timescale import drops, hosts

CONNECT_TIMEOUT_S = 10.0
EVENTS_MAX = 200
SUBJECT_MAX = 40
DESCRIPTION = """\
Which events of the vendor arrive without a mapping: event tokens and kinds of activity that no app
of the workspaces file maps to an event type. Their callbacks are in quarantine, so that nothing is
lost: map them with the lines at the end, then `replay` them.

Needs DATABASE_URL. With WORKSPACES_FILE it also finds tokens that differ only in letter case from a
mapped one, and those that are mapped by now. Callbacks that quarantine had no place for are not
counted here, but in the metric flokit_quarantine_skipped_total. Times are UTC.
"""
HEAD = ("app", "event", "kind", "in quarantine", "first", "last", "looks like")
NUMBERS = (3,)
PASTE = 'to paste into the workspaces file; an event type goes into each "", or it is refused:'

Found = Sequence[tuple[drops.UnmappedEvent, Likeness]]


class File(NamedTuple):
    """The workspaces file, and the cell that reads it; empty where there is none."""

    apps: workspaces_file.Apps
    text: str
    cell: str

    def note(self, vendor: str, app_token: str) -> str:
        """Return a comment about an app of another cell, where its callbacks are replayed."""
        app = self.apps.get((vendor, app_token))
        if not self.cell or app is None or app.cell == self.cell:
            return ""
        return f"  # in cell {app.cell}, with --from: docs/cells.md"


class UnmappedLine(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `--json`; `section` and `event_type` are empty where nothing is suggested."""

    workspace_id: str
    vendor: str
    app_token: str
    event: str
    kind: str
    callbacks: int
    first_received_at: datetime
    last_received_at: datetime
    looks_like: str
    section: str
    event_type: str


class _Options(msgspec.Struct):
    json: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and the description."""
    parser.description = DESCRIPTION
    add_times(parser, since="30d")
    add_apps(parser)
    parser.add_argument("--json", action="store_true", help="a line of JSON for each event")


def run(arguments: argparse.Namespace) -> int:
    """Print the unmapped events, the most frequent first."""
    options = msgspec.convert(vars(arguments), _Options)
    selection = selection_of(arguments)
    settings = read_settings(required=["DATABASE_URL"])
    file = _read_file(settings)
    events = asyncio.run(_read(settings.database_url, selection))
    found = [
        (event, likeness(event.subject, _parameters(event), file.apps.get(_key(event))))
        for event in events
    ]
    if options.json:
        for event, like in found:
            print(json_line(_line(event, like)))
    else:
        _print(found, selection, file)
    return 0


def _read_file(settings: Settings) -> File:
    if not settings.workspaces_file:
        return File({}, "", "")
    text = workspaces_file.read_bytes(Path(settings.workspaces_file))
    return File(workspaces_file.decode(text, adapters.load()), text.decode(), settings.cell)


async def _read(database_url: str, selection: drops.Selection) -> Sequence[drops.UnmappedEvent]:
    async with hosts.connected(database_url, timeout_s=CONNECT_TIMEOUT_S) as connection:
        await drops.require_quarantine(connection)
        return await drops.unmapped(connection, selection, EVENTS_MAX)


def _key(event: drops.UnmappedEvent) -> tuple[str, str]:
    return event.vendor, event.app_token


def _parameters(event: drops.UnmappedEvent) -> Mapping[str, str]:
    return parameters_of(event.query, event.content_type, event.body)


def _line(event: drops.UnmappedEvent, like: Likeness) -> UnmappedLine:
    return UnmappedLine(
        workspace_id=event.workspace_id,
        vendor=event.vendor,
        app_token=event.app_token,
        event=event.subject,
        kind=like.kind.value,
        callbacks=event.callbacks,
        first_received_at=event.first_received_at,
        last_received_at=event.last_received_at,
        looks_like=like.text,
        section=like.section.value if like.section else "",
        event_type=like.event_type,
    )


def _print(found: Found, selection: drops.Selection, file: File) -> None:
    since = f" since {minute(selection.since)} UTC" if selection.since else ""
    if not found:
        print(f"no unmapped events in quarantine{since}")
        return
    rows = [
        (
            printable(event.app_token),
            printable(event.subject, SUBJECT_MAX) or NOTHING,
            like.kind.value,
            f"{event.callbacks:,}",
            minute(event.first_received_at),
            minute(event.last_received_at),
            printable(like.text),
        )
        for event, like in found
    ]
    for line in table([HEAD, *rows], right=NUMBERS):
        print(line)
    if len(found) == EVENTS_MAX:
        print(f"(the {EVENTS_MAX} most frequent)")
    for line in _lines_to_paste(found, file):
        print(line)


def _lines_to_paste(found: Found, file: File) -> Sequence[str]:
    """Return the entries for the workspaces file by app and section, and the replay."""
    places: defaultdict[tuple[str, str, Section], list[str]] = defaultdict(list)
    for event, like in found:
        # The workspaces file refuses a name with control characters.
        if like.section and event.subject.isprintable():
            entry = (
                toml_string(event.subject)
                if like.section is Section.IGNORE
                else f"{toml_key(event.subject)} = {toml_string(like.event_type)}"
            )
            places[event.vendor, event.app_token, like.section].append(entry)
    if not places:
        return []
    lines = ["", PASTE]
    for place, entries in sorted(places.items(), key=_place):
        lines += ["", *_entries(*place, entries, file)]
    commands = {
        f"python -m app replay --reason unmapped_event --app {quote(token)} --dry-run"
        f"{file.note(vendor, token)}"
        for vendor, token, _ in places
        if token.isprintable()
    }
    lines += ["", "then, five seconds later:", *sorted(commands)]
    return lines


def _entries(
    vendor: str, app_token: str, section: Section, entries: Sequence[str], file: File
) -> Sequence[str]:
    """Return a comment that names the place, and the entries in the form of that place."""
    name, of_app = section.value, f"of app {printable(app_token)} ({vendor})"
    opening, closing = ("[", "]") if section is Section.IGNORE else ("{", "}")
    listed = ", ".join(entries)
    app = file.apps.get((vendor, app_token))
    if app is not None and not _mapped(app, section):
        return [f"# as a line below app_token, {of_app}:", f"{name} = {opening} {listed} {closing}"]
    header = rf"^[ \t]*\[[ \t]*workspaces\.apps\.{name}[ \t]*\]"
    if re.search(header, file.text, re.MULTILINE):
        return [f"# below  [workspaces.apps.{name}]  {of_app}:", *entries]
    # An inline table is one line, and refuses a comma at its end.
    return [f"# right after  {name} = {opening}  {of_app}:", f"{listed},"]


def _mapped(app: App, section: Section) -> Collection[str]:
    match section:
        case Section.EVENTS:
            return app.events
        case Section.ACTIVITIES:
            return app.activities
        case Section.IGNORE:
            return app.ignore


def _place(item: tuple[tuple[str, str, Section], list[str]]) -> tuple[str, str, str]:
    vendor, app_token, section = item[0]
    return vendor, app_token, section.value
