"""`dropped`: the callbacks in quarantine, counted and shown, and the way to get them back."""

import argparse
import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from app.commands.known_apps import KnownApps
from app.commands.output import NOTHING, json_line, minute, printable, printable_form, table
from app.commands.remedies import Unfilled, read_unfilled, remedies
from app.commands.selection import add_selection, selection_of, whole
from app.dropped import decode_event
from app.event import DropReason
from app.parameters import FORM, escape
from app.redaction import redact_body, redact_query
from app.settings import read_settings
from sinks.timescale import drops, hosts

CONNECT_TIMEOUT_S = 10.0
GROUPS_MAX = 40
SHOWN_MAX = 1_000
SUBJECT_MAX = 40
TEXT_MAX = 1_500
DESCRIPTION = """\
Which callbacks were dropped, why, and how to get them back. Callbacks that were answered `dropped`
are in quarantine for QUARANTINE_D days, except for those that an app ignores on purpose.

First a line for each app, reason and subject; the subject is the event without a mapping, the
unknown app token, the placeholder left unfilled, or the time that is none. Then the newest
callbacks as they were sent, without their secret. They hold personal data: `--show 0` leaves them
out.

Needs DATABASE_URL. With WORKSPACES_FILE it also finds app tokens that differ only in letter case
from a known one. Times are UTC.
"""
HEAD = ("app", "reason", "subject", "callbacks", "first", "last")
NUMBERS = (3,)


class Callback(msgspec.Struct, frozen=True, kw_only=True, tag="callback", tag_field="kind"):
    """A callback as a line of `--json`; `query` is encoded as in a URL."""

    drop_id: int
    received_at: datetime
    workspace_id: str
    vendor: str
    app_token: str
    reason: DropReason
    subject: str
    method: str
    query: str
    content_type: str
    body: str
    event: str | None


class _Options(msgspec.Struct):
    show: str = "5"
    json: bool = False


class _Read(NamedTuple):
    counts: drops.DropCounts
    newest: Sequence[drops.KeptDrop]
    unfilled: Sequence[Unfilled]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and the description."""
    parser.description = DESCRIPTION
    add_selection(parser, since="7d")
    parser.add_argument(
        "--show", metavar="N", default="5", help="show the newest N callbacks (default: 5)"
    )
    parser.add_argument(
        "--json", action="store_true", help="a line of JSON for each count and each callback"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the counts and the newest callbacks of a selection."""
    options = msgspec.convert(vars(arguments), _Options)
    selection = selection_of(arguments)
    show = whole("--show", options.show, SHOWN_MAX)
    settings = read_settings(required=["DATABASE_URL"])
    read = asyncio.run(_read(settings.database_url, selection, show))
    newest = [_redacted(drop, settings.secrets) for drop in read.newest]
    if options.json:
        for count in read.counts.largest:
            print(json_line(count))
        for drop in newest:
            print(json_line(_callback(drop)))
    else:
        _print(read._replace(newest=newest), selection, KnownApps(settings.workspaces_file))
    return 0


def _redacted(drop: drops.KeptDrop, secrets: Collection[str]) -> drops.KeptDrop:
    """Return a drop without the secrets that are valid now, one of which may be newer than it."""
    return replace(
        drop,
        query=redact_query(drop.query, (), secrets),
        body=redact_body(drop.content_type, drop.body, (), secrets),
    )


async def _read(database_url: str, selection: drops.Selection, show: int) -> _Read:
    async with hosts.connected(database_url, timeout_s=CONNECT_TIMEOUT_S) as connection:
        await drops.require_quarantine(connection)
        counts = await drops.count(connection, selection, GROUPS_MAX)
        newest = await drops.newest(connection, selection, show) if show else []
        unfilled = await read_unfilled(connection, counts.largest, selection)
        return _Read(counts, newest, unfilled)


def _print(read: _Read, selection: drops.Selection, known: KnownApps) -> None:
    counts = read.counts
    since = f" since {minute(selection.since)} UTC" if selection.since else ""
    if not counts.largest:
        print(f"no such callback in quarantine{since}")
        return
    print(f"{counts.callbacks:,} in quarantine{since}")
    print()
    rows = [
        (
            printable(count.app_token) or NOTHING,
            count.reason.value,
            printable(count.subject, SUBJECT_MAX) or NOTHING,
            f"{count.callbacks:,}",
            minute(count.first_received_at),
            minute(count.last_received_at),
        )
        for count in counts.largest
    ]
    for line in table([HEAD, *rows], right=NUMBERS):
        print(line)
    if (more := counts.groups - len(rows)) > 0:
        print(f"... and {more:,} more subjects")
    print()
    for line in remedies(counts.largest, read.unfilled, known, selection):
        print(line)
    if read.newest:
        print(f"\nthe newest {len(read.newest)}:")
    for drop in read.newest:
        for line in _shown(drop):
            print(line)


def _shown(drop: drops.KeptDrop) -> Sequence[str]:
    """Return the lines about a callback: its arrival and reason, its query, its body."""
    reason = f"{drop.reason.value} {printable(drop.subject, SUBJECT_MAX)}".rstrip()
    lines = [f"{drop.received_at:%Y-%m-%d %H:%M:%S}  {printable(drop.method, 10)}  {reason}"]
    if drop.query:
        lines.append(f"    {printable_form(drop.query, TEXT_MAX)}")
    if drop.body:
        is_form = drop.content_type.partition(";")[0].strip().lower() == FORM
        text = drop.body.decode(errors="replace")
        body = printable_form(drop.body, TEXT_MAX) if is_form else printable(text, TEXT_MAX)
        lines.append(f"    {printable(drop.content_type, 100) or 'body'}: {body}")
    if drop.event:
        lines.append(f"    {printable(_event(drop.event) or 'of another version', TEXT_MAX)}")
    return lines


def _event(encoded: bytes) -> str | None:
    """Return a refused event as JSON; None for the form of another version."""
    try:
        return json_line(decode_event(encoded))
    except ValueError:
        return None


def _callback(drop: drops.KeptDrop) -> Callback:
    return Callback(
        drop_id=drop.drop_id,
        received_at=drop.received_at,
        workspace_id=drop.workspace_id,
        vendor=drop.vendor,
        app_token=drop.app_token,
        reason=drop.reason,
        subject=drop.subject,
        method=drop.method,
        query=escape(drop.query).decode(),
        content_type=drop.content_type,
        body=drop.body.decode(errors="backslashreplace"),
        event=_event(drop.event) if drop.event else None,
    )
