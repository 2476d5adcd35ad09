"""Drops for tests of quarantine: callbacks that are mapped by now, and the run of `replay`."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from app.dropped import Dropped
from app.event import DropReason
from bench.testbed.process import ROOT, inherited
from sinks.timescale.quarantine import TimescaleQuarantine
from tests.events import FIRST_CALLBACK_AT
from tests.gateways import SECRET, query, workspaces_toml

ARRIVED_AT = FIRST_CALLBACK_AT + timedelta(minutes=1)
TIMEOUT_S = 60
# One way to start the command; a test may put another program in its place.
APP = (sys.executable, "-m", "app")
COUNTS = ("read", "written", "duplicate", "dropped", "left")


class Ended(msgspec.Struct):
    """The end of a command, and its report where it printed one."""

    exit_code: int
    output: str
    errors: str

    @property
    def report(self) -> dict[str, Any]:
        """The JSON object that it printed."""
        report: dict[str, Any] = msgspec.json.decode(self.output)
        left, dropped = sum(report["left"].values()), sum(report["dropped"].values())
        assert report["written"] + report["duplicate"] + dropped + left == report["read"]
        return report

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of rows read, written, duplicate, dropped and left."""
        report = self.report
        return tuple(
            sum(value.values()) if isinstance(value := report[name], dict) else value
            for name in COUNTS
        )


def drop(user: str, **fields: Any) -> Dropped:
    """A drop of a user's callback, which was unmapped then and is mapped now."""
    parameters: dict[str, str] = fields.pop("parameters", {})
    known = Dropped(
        received_at=ARRIVED_AT,
        vendor="adjust",
        workspace_id="ws_test",
        app_token="abc123token",
        reason=DropReason.UNMAPPED_EVENT,
        subject="g3mz3t",
        method="GET",
        query=query_of(user_id=user, **parameters),
    )
    return msgspec.structs.replace(known, **fields)


def query_of(**parameters: str) -> bytes:
    """The query of a callback as quarantine keeps it: without the secret."""
    return query(**parameters).removeprefix(f"secret={SECRET}&").encode()


def drops(count: int, step: timedelta = timedelta(seconds=1)) -> list[Dropped]:
    """Drops of as many users, one after another."""
    return [drop(f"u{n}", received_at=ARRIVED_AT + n * step) for n in range(count)]


async def keep(database_url: str, dropped: Sequence[Dropped]) -> None:
    """Put drops into quarantine, as a gateway does."""
    quarantine = TimescaleQuarantine(database_url, commit_timeout_s=30, writer="gateway")
    try:
        accounted = [msgspec.structs.replace(each, account=each.subject) for each in dropped]
        await quarantine.keep(accounted)
    finally:
        await quarantine.close()


class Replays:
    """Runs `replay` with the settings of a gateway, as a process of its own."""

    def __init__(self, settings: Mapping[str, str]) -> None:
        self.settings = settings
        self.database_url, self.redis_url = settings["DATABASE_URL"], settings["REDIS_URL"]

    def but(self, **settings: str) -> "Replays":
        """The same with some other settings."""
        return Replays({**self.settings, **settings})

    def run(self, *arguments: str, app: Sequence[str] = APP) -> Ended:
        """Run it to its end; without arguments it writes, and prints JSON."""
        ended = subprocess.run(
            [*app, "replay", *(arguments or ("--yes", "--json"))],
            cwd=ROOT,
            env={**inherited(), **self.settings},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert "Traceback" not in ended.stderr, ended.stderr
        return Ended(ended.returncode, ended.stdout, ended.stderr)

    def write_workspaces(self, *app_tokens: str, more: str = "") -> None:
        """Put these apps into the workspaces file."""
        self.write(workspaces_toml(*app_tokens, more=more))

    def write(self, text: str) -> None:
        """Put a text into the workspaces file."""
        Path(self.settings["WORKSPACES_FILE"]).write_text(text)


async def in_quarantine(connection: asyncpg.Connection) -> int:
    """The number of rows in quarantine; fails unless their size is counted exactly."""
    rows: int = await connection.fetchval("SELECT count(*) FROM dropped")
    counted = await connection.fetchrow(
        "SELECT coalesce(sum(rows), 0), coalesce(sum(bytes), 0) FROM quarantine_usage"
    )
    assert counted is not None
    assert counted[0] == rows
    assert (counted[1] > 0) is (rows > 0)
    return rows


async def arrivals(connection: asyncpg.Connection) -> dict[str, datetime]:
    """The time of arrival by user, of all events; fails where a user has two."""
    records = await connection.fetch("SELECT user_id, received_at FROM events")
    found: dict[str, datetime] = {record[0]: record[1] for record in records}
    assert len(found) == len(records)
    return found
