"""`tail`: callbacks and their outcomes as they arrive."""

import argparse
import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing

import msgspec

from app.commands.output import json_line
from app.commands.tail_lines import Line, line_of, text_of
from app.settings import read_settings
from sinks.timescale import drops, follow, hosts
from sinks.timescale.errors import DatabaseError
from sinks.timescale.follow import Arrivals, Follower, Wanted, server_time

# From one read to the next; longer where a read takes long, so that it costs the database little.
POLL_S, POLL_MAX_S = 1.0, 5.0
READ_SHARE = 0.1
LINES_MAX = 50
CONNECT_TIMEOUT_S = 10.0
COMMAND_TIMEOUT_S = 30.0
RETRY_MAX_S = 15.0
DESCRIPTION = """\
Shows each callback a second or two after its arrival, of all gateways on DATABASE_URL, until
Ctrl-C: written events, dropped callbacks with what to do about them, and requests that were turned
away unverified (401, 404, 405), which keep no parameters. Start it, call the URL, and read why.

 16:02:11  adjust    abc123token   g3mz3t        written    -> purchase  user_id (hidden)
 16:02:14  adjust    abc123token   zzzzzz        dropped    unmapped_event: add  zzzzzz = "..." ...
 16:02:20  adjust    -             -             401        wrong secret: 15 characters, ...

It reads the tables, and changes nothing. So it does not show what leaves no row: duplicates (the
answer says `"duplicate":1`), ignored events, 5xx (the vendor calls again), and closed connections.
A request that reaches no gateway leaves no row either: where nothing appears at all, check the
host, the path and the network.

Where more than 50 rows a second arrive, it shows the newest 50 and counts the others. Events that
occurred long ago (before the newest 100 days that have events) are not shown. Times are UTC.
"""

Followers = Mapping[str, Follower]


class Options(msgspec.Struct):
    """The arguments of the command."""

    app: str | None = None
    vendor: str | None = None
    rejected: bool = False
    json: bool = False
    show_ids: bool = False


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments, and the description."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "--app", metavar="T", help="only this app token (and rejected requests, which have none)"
    )
    parser.add_argument("--vendor", metavar="V", help="only this vendor, and unknown ones")
    parser.add_argument("--rejected", action="store_true", help="only rejected requests")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")
    parser.add_argument("--show-ids", action="store_true", help="show the IDs of users and devices")


def run(arguments: argparse.Namespace) -> int:
    """Print lines until the process is interrupted."""
    options = msgspec.convert(vars(arguments), Options)
    settings = read_settings(required=["DATABASE_URL"])
    asyncio.run(tail(settings.database_url, options))
    return 0


async def tail(database_url: str, options: Options) -> None:
    """Print a line for each row that becomes visible; on standard error, the connection's state."""
    wanted = Wanted(options.vendor, options.app)
    followers = {"rejected": Follower(follow.rejected(wanted), LINES_MAX)}
    if not options.rejected:
        followers["dropped"] = Follower(follow.drops(wanted), LINES_MAX)
        followers["written"] = Follower(follow.events(wanted), LINES_MAX)
    # Printed outside of the connection: the end of a pipe is no failure of the database.
    async with aclosing(_lines(database_url, followers, show_ids=options.show_ids)) as lines:
        async for line in lines:
            if isinstance(line, str):
                print(line, file=sys.stderr, flush=True)
            else:
                print(json_line(line) if options.json else text_of(line), flush=True)


async def _lines(
    database_url: str, followers: Followers, *, show_ids: bool
) -> AsyncGenerator[Line | str, None]:
    """Yield new lines every second, and texts about the connection, which is opened again.

    Raises DatabaseError for a failure before the first read.
    """
    has_started = False
    failures = 0
    arrived: dict[str, Arrivals] = {}
    while True:
        try:
            async with hosts.connected(
                database_url, timeout_s=CONNECT_TIMEOUT_S, command_timeout_s=COMMAND_TIMEOUT_S
            ) as connection:
                await drops.require_quarantine(connection)
                while True:
                    started = time.monotonic()
                    await _read(connection, followers, arrived)
                    pause_s = min((time.monotonic() - started) / READ_SHARE, POLL_MAX_S)
                    if failures or not has_started:
                        yield "connected again" if failures else "waiting for callbacks"
                    for line in _ordered(arrived, show_ids=show_ids) if has_started else ():
                        yield line
                    arrived.clear()
                    has_started, failures = True, 0
                    await asyncio.sleep(max(pause_s, POLL_S))
        except DatabaseError as error:
            if not has_started:
                raise
            # The first of its reads may have succeeded, and their rows are not returned again.
            for line in _ordered(arrived, show_ids=show_ids):
                yield line
            arrived.clear()
            if not failures:
                yield f"database: {error}; trying again"
        failures += 1
        await asyncio.sleep(min(2.0 ** (failures - 1), RETRY_MAX_S))


async def _read(
    connection: hosts.Connection, followers: Followers, arrived: dict[str, Arrivals]
) -> None:
    now = await server_time(connection)
    for name, each in followers.items():
        arrived[name] = await each.read(connection, now)


def _ordered(arrived: Mapping[str, Arrivals], *, show_ids: bool) -> Sequence[Line]:
    """Return the lines of one read in the order of arrival, and the counts of rows left out."""
    rows = [row for arrivals in arrived.values() for row in arrivals.rows]
    lines = [
        line_of(row, show_ids=show_ids) for row in sorted(rows, key=lambda row: row.received_at)
    ]
    for outcome, arrivals in arrived.items():
        if arrivals.left_out:
            lines.append(Line(outcome=outcome, left_out=arrivals.left_out))
    return lines
