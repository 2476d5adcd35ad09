"""`replay` at the command line: consent, wrong arguments, Ctrl-C, and servers of other kinds."""

import asyncio
import os
import pty
import signal
import subprocess
from datetime import timedelta

import asyncpg
import msgspec
import pytest

from app.commands.replay_report import listed
from app.event import DropReason
from bench.testbed.process import PATIENCE_S, POLL_S, ROOT, inherited
from sinks.timescale import schema
from tests.gateways import Services
from tests.replays import APP, Replays, arrivals, drops, in_quarantine, keep


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--json",), "--yes"),
        (("--yes", "--dry-run"), "--dry-run"),
        (("--yes", "--rate", "0"), "--rate"),
        (("--yes", "--rate", "nan"), "--rate"),
        (("--yes", "--reason", "ignored"), "--reason"),
        (("--yes", "--since", "yesterday"), "--since"),
        (("--yes", "--set", "created_at"), "--set"),
        (("--yes", "--set", "secret=x"), "--set"),
        (("--yes", "--from", "postgresql://127.0.0.1:1/other"), "--from: needs CELL"),
    ],
)
async def test_wrong_argument_is_one_line(
    replays: Replays, arguments: tuple[str, ...], word: str
) -> None:
    """A wrong argument, or no consent where nobody can be asked, is one line that names it."""
    ended = replays.run(*arguments)
    assert (ended.exit_code, ended.output) == (2, "")
    [line] = ended.errors.splitlines()
    assert line.startswith(word)


async def test_wrong_workspaces_file_stops_the_replay(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """With a workspaces file that does not decode nothing is read."""
    await keep(replays.database_url, drops(1))
    replays.write("[[workspaces]]\n")
    ended = replays.run()
    assert (ended.exit_code, ended.output) == (2, "")
    [line] = ended.errors.splitlines()
    assert line.startswith("WORKSPACES_FILE: ")
    assert await in_quarantine(connection) == 1


async def test_terminal_gets_a_dry_run(replays: Replays, connection: asyncpg.Connection) -> None:
    """On a terminal nothing is written without --yes, and the last line names it."""
    await keep(replays.database_url, drops(3))
    ours, theirs = pty.openpty()
    try:
        process = await asyncio.create_subprocess_exec(
            *APP, "replay", cwd=ROOT, env={**inherited(), **replays.settings}, stdout=theirs
        )
        assert await process.wait() == 0
        output = os.read(ours, 4096).decode()
    finally:
        os.close(ours)
        os.close(theirs)
    assert "dry run, nothing is written: would be written 3 " in output
    assert output.splitlines()[-1] == "to write: --yes, in place of --dry-run"
    assert await in_quarantine(connection) == 3


async def test_interrupt_stops_between_batches(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """Ctrl-C ends a replay with the sums so far; the next one does the rest."""
    await keep(replays.database_url, drops(300))
    process = await asyncio.create_subprocess_exec(
        *APP, "replay", "--yes", "--json", "--rate", "1",
        cwd=ROOT, env={**inherited(), **replays.settings},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(PATIENCE_S):
        while not await connection.fetchval("SELECT count(*) FROM events"):
            await asyncio.sleep(POLL_S)
        process.send_signal(signal.SIGINT)
        output, errors = await process.communicate()
    assert process.returncode == 130
    assert b"Traceback" not in errors
    report = msgspec.json.decode(output)
    written = await connection.fetchval("SELECT count(*) FROM events")
    assert (report["read"], report["is_complete"]) == (written, False)
    assert written == 50
    assert await in_quarantine(connection) == 250
    imports = "SELECT written FROM imports WHERE finished_at IS NOT NULL"
    assert await connection.fetchval(imports) == written
    assert replays.run().counts == (250, 250, 0, 0, 0)


async def test_mistyped_app_token_is_set(replays: Replays, connection: asyncpg.Connection) -> None:
    """Callbacks with a mistyped app token are written as those of the app that was meant."""
    rows = [
        msgspec.structs.replace(
            each, reason=DropReason.UNKNOWN_APP, subject="ABC123token", workspace_id="",
            app_token="ABC123token",
            query=each.query.replace(b"app_token=abc123token", b"app_token=ABC123token"),
        )
        for each in drops(2)
    ]  # fmt: skip
    await keep(replays.database_url, rows)
    selection = ("--yes", "--json", "--reason", "unknown_app", "--app", "ABC123token")
    assert replays.run(*selection).counts == (2, 0, 0, 2, 0)
    ended = replays.run(*selection, "--set", "app_token=abc123token")
    assert ended.counts == (2, 2, 0, 0, 0)
    tokens = await connection.fetch("SELECT DISTINCT app_token FROM events")
    assert [record[0] for record in tokens] == ["abc123token"]


async def test_redis_out_of_reach_costs_only_speed(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """Without Redis every event counts as held, and the database finds the duplicates."""
    without = replays.but(REDIS_URL="redis://127.0.0.1:1")
    await keep(replays.database_url, [*drops(60), *drops(10)])
    ended = without.run()
    assert (ended.exit_code, ended.errors) == (0, "")
    assert ended.counts == (70, 60, 10, 0, 0)
    assert len(await arrivals(connection)) == 60


async def test_plain_postgresql_is_enough(replays: Replays, services: Services) -> None:
    """Tables without TimescaleDB are replayed, dry and for good."""
    name = f"gateway_plain_replay_{os.getpid()}"
    await services.execute(None, f"CREATE DATABASE {name}")
    url = services.url_of(name)
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE TABLE schema_migrations (name text PRIMARY KEY)")
    for migration, sql in schema.migrations().items():  # as on a server without the extension
        await connection.execute(sql.replace("'timescaledb'", "'absent'"))
        await connection.execute("INSERT INTO schema_migrations VALUES ($1)", migration)
    plain = replays.but(DATABASE_URL=url)
    await keep(url, drops(700, timedelta(hours=1)))
    rehearsed = await asyncio.to_thread(plain.run, "--dry-run", "--json")
    assert rehearsed.counts == (700, 700, 0, 0, 0)
    assert (await asyncio.to_thread(plain.run)).counts == (700, 700, 0, 0, 0)
    assert await in_quarantine(connection) == 0
    assert len(await arrivals(connection)) == 700
    await connection.close()
    await services.execute(None, f"DROP DATABASE {name} WITH (FORCE)")


def test_days_in_a_row_are_a_range() -> None:
    """Days touched are short to read, however many they are."""
    first = drops(1)[0].received_at.date()
    days = [first + timedelta(days=n) for n in (0, 1, 2, 5)]
    assert listed(days) == "2025-06-21 .. 2025-06-23, 2025-06-26"
