"""`tail`: callbacks and their outcomes as they arrive, on a real database."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from app.commands.known_apps import KnownApps
from app.commands.tail import Options, tail
from app.dropped import RejectedRequest
from app.event import DropReason
from bench.testbed.client import get, post
from bench.testbed.process import PATIENCE_S, ROOT, bound, inherited
from sinks.timescale import follow
from sinks.timescale.schema import keep_chunk_ahead
from sinks.timescale.sink import TimescaleSink
from tests.events import event
from tests.gateways import SECRET, Gateways, Services, workspaces_toml
from tests.kept import drop, keep, reject


class Tail:
    """A running `tail`, and its output so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str], database_url: str) -> None:
        self.out = ""
        self.err = ""
        self.workspaces_file = ""
        self._capsys = capsys
        self._database_url = database_url
        self._task: asyncio.Task[None] | None = None

    async def start(self, **options: Any) -> None:
        """Start it, and return once it waits for callbacks."""
        chosen, known = Options(**options), KnownApps(self.workspaces_file)
        self.err = ""
        self._task = asyncio.create_task(tail(self._database_url, chosen, known))
        await self.until(lambda: "waiting for callbacks" in self.err)

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return when a condition holds for the output; fails after a while."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                out, err = self._capsys.readouterr()
                self.out, self.err = self.out + out, self.err + err
                if condition():
                    return
                assert self._task is not None
                assert not self._task.done(), self._task.exception()
                await asyncio.sleep(0.02)

    async def until_shown(self, *texts: str) -> None:
        """Return when each of the texts is in the output."""
        await self.until(lambda: all(text in self.out for text in texts))

    def line(self, text: str) -> str:
        """The only line with a text, its words apart by one blank."""
        (found,) = [line for line in self.out.splitlines() if text in line]
        return " ".join(found.split())

    async def stop(self) -> None:
        """Stop it as Ctrl-C does."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


@pytest.fixture
async def tailing(database_url: str, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Tail]:
    """A `tail` on the test's database, not yet started."""
    tailing = Tail(capsys, database_url)
    yield tailing
    await tailing.stop()


def now() -> datetime:
    """The time of an arrival."""
    return datetime.now(UTC)


async def test_each_outcome_is_a_line(gateways: Gateways, tailing: Tail) -> None:
    """A row or a request that was turned away is a line soon after it arrived."""
    gateway = await gateways.start()
    await gateway.callback(user_id="usr_before")
    await tailing.start()
    await gateway.callback(user_id="usr_secret", revenue_float="4.99", currency="USD")
    await gateway.callback(event_token="zzzzzz", user_id="usr_secret")
    await gateway.callback(app_token="nowhere")
    await gateway.callback(event_token="{event}")
    await gateway.callback(created_at="yesterday")
    await gateway.post(b"[1, 2]", "application/json")
    await gateway.callback(secret="wr0ng")
    await get(gateway.port, "/ingest/nobody")
    await get(gateway.port, "/adjust")
    await post(gateway.port, "/healthz", b"")
    others = {"ignored", "refused", "other_cell"}
    reasons = [reason.value for reason in DropReason if reason.value not in others]
    await tailing.until_shown(
        "written", *reasons, " 401 ", " 405 ", "unknown path", "unknown vendor"
    )
    written = tailing.line("written")
    assert "adjust abc123token g3mz3t written -> purchase user_id (hidden)" in written
    assert written.endswith("revenue_float 4.99 usd")
    assert 'add zzzzzz = "..." to events' in tailing.line("unmapped_event")
    unknown_app = tailing.line("unknown_app")
    assert "nowhere g3mz3t dropped unknown_app: add the app nowhere" in unknown_app
    unfilled = tailing.line("unfilled_placeholder")
    assert "{event} dropped unfilled_placeholder: correct the placeholder" in unfilled
    assert "the vendor's own test (cbtest)" in unfilled
    assert tailing.line(" 401 ").endswith("from 127.0.0.1")
    assert tailing.line("unknown path").endswith("404 unknown path, from 127.0.0.1")
    assert "404 unknown vendor" in tailing.line("unknown vendor")
    assert "usr_" not in tailing.out
    assert SECRET not in tailing.out + tailing.err


async def test_mistyped_app_token_is_to_be_corrected(
    tailing: Tail, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    """A token that resembles one of the present workspaces file is no app to be added."""
    path = tmp_path / "workspaces.toml"
    tailing.workspaces_file = str(path)
    await tailing.start()
    for token, known in (("ABC123token", "abc123token"), ("X9", "x9")):
        path.write_text(workspaces_toml(known))
        await keep(
            connection,
            drop(token, reason=DropReason.UNKNOWN_APP, app_token=token, received_at=now()),
        )
        await tailing.until_shown(
            f"{token} differs only in letter case or white space from {known}"
        )
    path.unlink()
    await keep(
        connection, drop("X9", reason=DropReason.UNKNOWN_APP, app_token="X9", received_at=now())
    )
    await tailing.until_shown("add the app X9 to the workspaces file")


async def test_json_hides_ids_unless_they_are_wanted(
    tailing: Tail, connection: asyncpg.Connection, sink: TimescaleSink
) -> None:
    """A line of --json has all that is known; the IDs of users and devices on demand only."""
    await tailing.start(json=True, show_ids=True)
    await sink.write([event("usr_shown", received_at=now(), properties={"event_token": "g3mz3t"})])
    await tailing.until_shown("usr_shown")
    await tailing.stop()
    await tailing.start(json=True)
    await sink.write([event("usr_hidden", received_at=now(), adid="device_1")])
    await keep(connection, drop(received_at=now()))
    await tailing.until_shown("(hidden)", "dropped")
    lines = [json.loads(line) for line in tailing.out.splitlines()]
    written = [line for line in lines if line["outcome"] == "written"]
    assert [line["user_id"] for line in written] == ["usr_shown", "(hidden)"]
    assert written[0]["event"] == "g3mz3t"
    assert written[1]["adid"] == "(hidden)"
    assert "usr_1" not in tailing.out  # of the query of the drop


async def test_rows_that_become_visible_late_are_shown_once(
    tailing: Tail, connection: asyncpg.Connection, sink: TimescaleSink, database_url: str
) -> None:
    """A row is shown once when it becomes visible, though later arrivals were shown before."""
    other = await asyncpg.connect(database_url)
    await tailing.start()
    async with other.transaction():
        await keep(other, drop("crossing", received_at=now()))
        await keep(connection, drop("overtaking", received_at=now()))
        await tailing.until_shown("overtaking")
    await keep(connection, drop("delayed", received_at=now() - timedelta(seconds=90)))
    await sink.write([event("slow_clock", received_at=now() - timedelta(minutes=4))])
    await tailing.until_shown("crossing", "delayed", "written")
    for subject in ("last", "very last"):  # after two more reads at least
        await keep(connection, drop(subject, received_at=now()))
        await tailing.until_shown(f"{subject} ")
    assert len(tailing.out.splitlines()) == 6
    await other.close()


@pytest.mark.parametrize("count", [60, 700])
async def test_many_rows_are_sampled_and_counted(
    tailing: Tail, connection: asyncpg.Connection, count: int
) -> None:
    """Of more rows than a person reads, the newest are shown, and the number of the others."""
    await tailing.start()
    start = now()
    rows = [drop(f"s{n:03d}", received_at=start + timedelta(microseconds=n)) for n in range(count)]
    await keep(connection, *rows)
    await tailing.until_shown(f"... and {count - 50} more dropped")
    assert f"s{count - 1:03d}" in tailing.out
    assert "s000" not in tailing.out
    await keep(connection, drop("afterwards", received_at=now()))
    await tailing.until_shown("afterwards")
    assert len(tailing.out.splitlines()) == 52


async def test_filters_leave_other_rows_out(
    tailing: Tail, connection: asyncpg.Connection, sink: TimescaleSink
) -> None:
    """--app leaves other apps out, and --rejected all but requests that were turned away."""
    await tailing.start(app="abc123token", vendor="adjust")
    turned_away = RejectedRequest(
        received_at=now(), vendor="", reason="unknown_vendor", address="::1", hint=""
    )
    await keep(connection, drop("foreign", app_token="other", received_at=now()))
    await keep(connection, drop("other vendor", vendor="other", received_at=now()))
    await keep(connection, drop("ours", received_at=now()))
    await sink.write([event("usr_1", app_token="other", received_at=now())])
    await reject(connection, turned_away)
    await tailing.until_shown("ours", "unknown vendor")
    assert len(tailing.out.splitlines()) == 2
    await tailing.stop()
    await tailing.start(rejected=True)
    await keep(connection, drop("unwanted", received_at=now()))
    await reject(connection, turned_away)
    await tailing.until(lambda: tailing.out.count("unknown vendor") == 2)
    assert "unwanted" not in tailing.out


async def test_hostile_texts_are_harmless(tailing: Tail, connection: asyncpg.Connection) -> None:
    """A text of a stranger does not reach the terminal as a command."""
    await tailing.start()
    await keep(connection, drop("a\x1b[2J\u202eb", app_token="c\x9b2J", received_at=now()))
    await reject(
        connection,
        RejectedRequest(
            received_at=now(), vendor="", reason="unknown_vendor", address="\x1b]0;x\x07", hint=""
        ),
    )
    await tailing.until_shown("a\\x1b[2J\\u202eb", "\\x1b]0;x\\x07")
    assert all(line.isprintable() for line in tailing.out.splitlines())


async def test_lost_database_is_one_line_and_no_end(
    tailing: Tail, services: Services, database_url: str
) -> None:
    """While the database is away `tail` waits; afterwards it goes on, with what came meanwhile."""
    name = database_url.rpartition("/")[2]
    await tailing.start()
    end_connections = (
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
    )
    await services.execute(None, f"ALTER DATABASE {name} ALLOW_CONNECTIONS false", end_connections)
    await tailing.until(lambda: "trying again" in tailing.err)
    await services.execute(None, f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
    connection = await asyncpg.connect(database_url)
    await keep(connection, drop("meanwhile", received_at=now()))
    await connection.close()
    await tailing.until_shown("meanwhile")
    assert len([line for line in tailing.err.splitlines() if line.startswith("database: ")]) == 1
    assert "connected again" in tailing.err


async def test_read_that_fails_halfway_loses_no_line(
    tailing: Tail, connection: asyncpg.Connection, database_url: str
) -> None:
    """The database goes away between the reads of two tables: the rows of the first are shown."""
    await tailing.start()
    locker = await asyncpg.connect(database_url)
    async with locker.transaction():
        await locker.execute("LOCK TABLE dropped IN ACCESS EXCLUSIVE MODE")
        first = await waiting_pid(connection)
        turned_away = RejectedRequest(
            received_at=now(), vendor="", reason="wrong_secret", address="::1", hint="halfway"
        )
        await reject(connection, turned_away)
        await connection.execute("SELECT pg_terminate_backend($1)", first)
        second = await waiting_pid(connection, other_than=first)
        await connection.execute("SELECT pg_terminate_backend($1)", second)
    await locker.close()
    await tailing.until_shown("halfway")


async def waiting_pid(connection: asyncpg.Connection, other_than: int = 0) -> int:
    """The process of the server that waits for a lock in this database."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            pid: int | None = await connection.fetchval(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
                " AND wait_event_type = 'Lock' AND pid <> $1",
                other_than,
            )
            if pid is not None:
                return pid
            await asyncio.sleep(0.02)


async def test_short_read_of_events_is_of_few_chunks(
    connection: asyncpg.Connection,
) -> None:
    """The read of every second does not touch the chunks of the past."""
    for days in range(30):
        await keep_chunk_ahead(connection, "events", now() - timedelta(days=days))
    since = now()
    values = (since, follow.SHORT_MAX, None, None, since - follow.RECENT)
    plan = await connection.fetch(f"EXPLAIN {follow._WRITTEN}", *values)
    scans = [record[0] for record in plan if " Scan " in record[0] and " on " in record[0]]
    assert 0 < len(scans) <= 4, scans


def popen(database_url: str) -> subprocess.Popen[str]:
    """Start `tail` as a process of its own."""
    return subprocess.Popen(
        bound([sys.executable, "-m", "app", "tail"]),
        cwd=ROOT, env={**inherited(), "DATABASE_URL": database_url}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_interrupt_ends_it_without_a_word(database_url: str) -> None:
    """Ctrl-C ends the process with 130, and no traceback."""
    with popen(database_url) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting for callbacks\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (130, "", "")


async def test_closed_pipe_ends_it_without_a_word(
    database_url: str, connection: asyncpg.Connection
) -> None:
    """The end of a reader such as `head` ends the process at its next line, without a traceback."""
    with popen(database_url) as process:
        assert process.stderr is not None
        assert process.stdout is not None
        assert await asyncio.to_thread(process.stderr.readline) == "waiting for callbacks\n"
        process.stdout.close()
        await keep(connection, drop(received_at=now()))
        assert await asyncio.to_thread(process.wait, PATIENCE_S) == 141
        assert process.stderr.read() == ""


async def test_database_without_schema_is_one_line(services: Services) -> None:
    """Without the tables the command ends, and names the remedy."""
    url = services.database_url
    with popen(url) as process:
        out, err = await asyncio.to_thread(process.communicate, timeout=PATIENCE_S)
    assert (process.returncode, out) == (1, "")
    assert err == "the table `dropped` is missing: run `python -m app migrate`\n"
