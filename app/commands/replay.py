"""`replay`: write dropped callbacks out of quarantine, through the present mapping."""

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID

import msgspec

import adapters
from app import workspaces_file
from app.commands.output import json_line, minute
from app.commands.progress import Progress
from app.commands.replay_report import Report, Sums, report_lines
from app.commands.replay_run import Databases, Replay, connect, rehearse
from app.commands.selection import ArgumentError, add_selection, selection_of
from app.gateway import create_claims, create_sink
from app.normalize import clean
from app.replay import ARRIVAL, SET_PROPERTY, Restorer
from app.settings import Settings, read_settings
from sinks.timescale import replay as rows_of
from sinks.timescale.drops import Selection
from sinks.timescale.replay import Overview

RATE = 5_000
INTERRUPTED = 130

DESCRIPTION = """\
Take dropped callbacks out of quarantine, and write those that are events by now: after a token was
mapped, an app was added, or the database was mended. Each goes through the present WORKSPACES_FILE
and has the event ID and the arrival that it always had, so that a second replay writes nothing.

  written      one new row is committed; the callback leaves quarantine
  duplicate    the row is there already; the callback leaves quarantine
  dropped      still no event, for one of the usual reasons; it stays in quarantine, but for what
               the app lists under `ignore` by now: that is taken out. other_cell: the app lives in
               another cell than CELL, whose `replay --from` writes it
  left         not decided: another writer has the event under way, or this version cannot read it;
               it stays for the next replay

First look at what would happen, with --dry-run; on a terminal that is what happens without --yes.
The arrival of a replayed row is old: a report that reads by arrival must read the days again that
are named at the end, and in the table `imports`.

With --from the callbacks come from the quarantine of another database, and their events are written
into DATABASE_URL: for callbacks that reached another cell than that of their app (docs/cells.md).
It needs CELL: the callbacks of apps of other cells stay where they are.

Needs DATABASE_URL, REDIS_URL and WORKSPACES_FILE.
"""
EXAMPLES = """\
examples:
  python -m app replay --reason unmapped_event --app abc123token --subject zzzzzz --dry-run
  python -m app replay --reason unknown_app --app ABC123token --set app_token=abc123token --yes
  python -m app replay --reason unfilled_placeholder --set event_token=g3mz3t --yes
  python -m app replay --reason invalid_timestamp --set created_at=@arrival --yes
  python -m app replay --from "$OTHER_DATABASE_URL" --app def456token --dry-run

exit code: 0 all is decided, 1 something is left or a server failed, 2 wrong arguments or settings,
130 stopped by Ctrl-C, between two batches and with the sums so far
"""


class _Arguments(msgspec.Struct):
    set: list[str]
    yes: bool
    dry_run: bool
    rate: float
    json: bool
    source: str | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and a longer description."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    add_selection(parser)
    parser.add_argument(
        "--set",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help=f"set a parameter of each callback before it is read (may be repeated); {ARRIVAL} is "
        f"its arrival. The property {SET_PROPERTY} has the names; refused events stay as they are",
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="URL",
        help="the database of the quarantine (default: DATABASE_URL); its password belongs in a "
        "password file, since arguments are visible in `ps`",
    )
    parser.add_argument("--dry-run", action="store_true", help="report, and write nothing")
    parser.add_argument("--yes", action="store_true", help="write, also from a terminal")
    parser.add_argument(
        "--rate",
        metavar="N",
        type=float,
        default=RATE,
        help="at most N events a second (%(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the result as a JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Replay a selection, and print the sums; returns 1 if something is left."""
    given = msgspec.convert(vars(arguments), _Arguments)
    if given.yes and given.dry_run:
        raise ArgumentError("--dry-run: contradicts --yes")
    if not (given.yes or given.dry_run or sys.stdout.isatty()):
        raise ArgumentError("--yes: needed to write, or else --dry-run, where there is no terminal")
    if not given.rate >= 1:
        raise ArgumentError(f"--rate: got {given.rate:g}, expected at least 1")
    selection = selection_of(arguments)
    set_parameters = read_set(given.set)
    settings = read_settings()
    vendors = adapters.load()
    apps = workspaces_file.read(Path(settings.workspaces_file), vendors)
    workspaces_file.require_cell(apps, settings.cell)
    if given.source is not None and not settings.cell:
        raise ArgumentError(
            "--from: needs CELL and a `cell` of each app, or every callback there would be written "
            "here"
        )
    restorer = Restorer(
        vendors=vendors,
        apps=apps,
        cell=settings.cell,
        retention_d=settings.retention_d,
        set_parameters=set_parameters,
    )
    # The parts log what they do about a failure: here it ends in one line.
    logging.getLogger().addHandler(logging.NullHandler())
    run = _Run(settings, selection, restorer, is_dry=not given.yes, is_json=given.json)
    return asyncio.run(run.run(given.rate, given.source))


def read_set(texts: Sequence[str]) -> Mapping[str, str]:
    """Return the parameters of `--set`; raises ArgumentError."""
    found: dict[str, str] = {}
    for text in texts:
        name, is_pair, value = text.partition("=")
        name, value = clean(name), clean(value)
        if not (is_pair and name):
            raise ArgumentError(f"--set: got {text!r}, expected NAME=VALUE")
        if name == "secret":
            raise ArgumentError("--set: the secret is no parameter")
        found[name] = value
    return found


class _Run:
    """One run of the command, from the extent of its selection to the report."""

    def __init__(
        self,
        settings: Settings,
        selection: Selection,
        restorer: Restorer,
        *,
        is_dry: bool,
        is_json: bool,
    ) -> None:
        self._settings = settings
        self._selection = selection
        self._restorer = restorer
        self._is_dry = is_dry
        self._is_json = is_json
        self._import_id: UUID | None = None
        self._extent: Overview | None = None
        self._sums = Sums()
        self._is_complete = False

    async def run(self, rate: float, source_url: str | None) -> int:
        """Run to the end, to Ctrl-C or to a failure, and print the sums; returns the exit code.

        `source_url` is the database of the quarantine, if it is another one.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            stop.set()
            loop.remove_signal_handler(signal.SIGINT)  # the next one ends the command at once

        loop.add_signal_handler(signal.SIGINT, interrupt)
        try:
            async with AsyncExitStack() as stack:
                databases = await connect(stack, self._settings.database_url, source_url)
                self._extent = await rows_of.read_overview(databases.quarantine, self._selection)
                self._print_extent()
                if self._extent is not None:
                    with Progress(self._extent.rows) as progress:
                        if self._is_dry:
                            self._sums = await rehearse(
                                databases, self._restorer, self._selection, self._extent,
                                stop=stop, show=progress.show,
                            )  # fmt: skip
                        else:
                            await self._replay(databases, self._extent, rate, stop, progress)
            self._is_complete = not stop.is_set()
        finally:
            self._print_report()
        if stop.is_set():
            return INTERRUPTED
        return 1 if self._sums.left.total() else 0

    async def _replay(
        self,
        databases: Databases,
        extent: Overview,
        rate: float,
        stop: asyncio.Event,
        progress: Progress,
    ) -> None:
        sink = create_sink(self._settings)
        claims = create_claims(self._settings, sink)
        replay = Replay(
            databases, self._restorer, claims, sink, rate=rate,
            # The claims of a replay that was killed end with their lease.
            busy_s=self._settings.claim_lease_s + 1, stop=stop, show=progress.show,
        )  # fmt: skip
        self._sums = replay.sums
        try:
            await sink.ping()  # until it has answered, Redis is not used
            self._import_id = await rows_of.begin_import(databases.imports, "replay")
            replay.sums.unfinished = await rows_of.read_unfinished(
                databases.imports, self._import_id
            )
            await replay.run(self._import_id, self._selection, extent)
        finally:
            await claims.close()
            await sink.close()

    def _print_extent(self) -> None:
        if self._is_json:
            return
        if self._extent is None:
            print("nothing in quarantine is selected")
            return
        rows, first, last = self._extent
        print(f"{rows:,} in quarantine, from {minute(first)} to {minute(last)} UTC", flush=True)

    def _print_report(self) -> None:
        sums = self._sums
        if self._is_json:
            report = Report(
                dry_run=self._is_dry, is_complete=self._is_complete, import_id=self._import_id,
                in_quarantine=self._extent.rows if self._extent else 0, read=sums.read,
                written=sums.written, duplicate=sums.duplicate,
                dropped={reason.value: count for reason, count in sums.dropped.items()},
                left=+sums.left, days=sorted(sums.days), unfinished=sums.unfinished,
            )  # fmt: skip
            print(json_line(report), flush=True)
        elif self._extent is not None:
            for line in report_lines(sums, is_dry=self._is_dry):
                print(line, flush=True)
