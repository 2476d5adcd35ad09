"""The retention of quarantine, and the findings of `check`: rows and sizes agree at any time."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.dropped import RejectedRequest
from sinks.timescale.quarantine import TimescaleQuarantine
from sinks.timescale.retention import retain_quarantine
from tests.drops import counted, drop, rows_of, sizes_of
from tests.gateways import Services, environment
from tests.services import test_quarantine_store
from tests.services.test_commands import PASSWORD, run
from tests.services.test_quarantine_store import on_both_kinds

Connection = asyncpg.Connection
database_url, quarantine = test_quarantine_store.database_url, test_quarantine_store.quarantine


@pytest.fixture
def environ(services: Services, database_url: str, tmp_path: Path) -> Mapping[str, str]:
    """The environment of a command."""
    return environment(database_url, services.redis_url, tmp_path)


def on_day(age_d: int, number: int = 0) -> datetime:
    """A moment of a day, in UTC, so many days ago."""
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return today - timedelta(days=age_d) + timedelta(minutes=number)


async def retained(connection: Connection, quarantine_d: int) -> list[str]:
    """Run the retention; return its lines."""
    return [line async for line in retain_quarantine(connection, quarantine_d)]


@on_both_kinds
async def test_whole_days_go_with_their_sizes(
    database_url: str, quarantine: TimescaleQuarantine, connection: Connection
) -> None:
    """Old days lose rows, sizes and traces; the sizes of past days become one row by account."""
    other = TimescaleQuarantine(database_url, commit_timeout_s=5)
    today, yesterday, young, old, oldest = map(on_day, (0, 1, 3, 6, 40))
    kept, expired = (
        [drop(received_at=day, subject=subject) for day in days for subject in ("a", "b")]
        for days in ((today, yesterday, young), (old, oldest))
    )
    for writer in (quarantine, other):
        await writer.keep([*kept, *expired])
    await quarantine.reject(
        [
            RejectedRequest(received_at=day, vendor="", reason="not_found", address="203.0.113.7")
            for day in (today, young, old, oldest)
        ]
    )
    for _ in range(2):  # the second run finds nothing to do
        assert (await retained(connection, 4))[-1].startswith("rejected: ")
        assert await rows_of(connection) == 12
        assert await counted(connection) == sizes_of([*kept, *kept])
        assert await connection.fetchval("SELECT count(*) FROM rejected") == 2
        rows = await connection.fetch(
            "SELECT writer, rows FROM quarantine_usage WHERE day < $1", today.date()
        )
        assert [tuple(row) for row in rows] == [("", 2)] * 4
    await other.close()


async def test_run_that_was_cut_short_is_mended(
    quarantine: TimescaleQuarantine, connection: Connection
) -> None:
    """Sizes whose rows went in a run that was killed go in the next one."""
    await quarantine.keep([drop(), drop(received_at=on_day(9))])
    await connection.execute("DELETE FROM dropped WHERE received_at < $1", on_day(5))
    await retained(connection, 5)
    assert await rows_of(connection) == 1
    assert await counted(connection) == sizes_of([drop()])


@on_both_kinds
async def test_retention_and_writers_do_not_meet(database_url: str, connection: Connection) -> None:
    """While writers keep drops of today and yesterday, old days go: none fails, none is lost."""
    writers = [TimescaleQuarantine(database_url, commit_timeout_s=10) for _ in range(3)]
    other = await asyncpg.connect(database_url)
    await writers[0].keep([drop(received_at=on_day(age_d)) for age_d in range(5, 25)])
    batch = [
        drop(received_at=on_day(number % 2, number), subject=f"s{number}") for number in range(20)
    ]

    async def keep(writer: TimescaleQuarantine) -> None:
        for _ in range(20):
            await writer.keep(batch)

    async def retain(connection: Connection) -> None:
        for quarantine_d in range(24, 3, -2):
            await retained(connection, quarantine_d)

    await asyncio.gather(*map(keep, writers), retain(connection), retain(other))
    assert await rows_of(connection) == 60 * len(batch)
    await retained(connection, 3)
    assert await rows_of(connection) == 60 * len(batch)
    assert await counted(connection) == sizes_of(batch * 60)
    for writer in writers:
        await writer.close()
    await other.close()


@pytest.mark.parametrize(("quarantine_d", "rows"), [("3", 3), ("0", 4)])
async def test_retain_applies_to_quarantine(
    environ: Mapping[str, str],
    quarantine: TimescaleQuarantine,
    connection: Connection,
    quarantine_d: str,
    rows: int,
) -> None:
    """`retain` cleans quarantine where events are kept for ever; turned off, after 14 days."""
    await quarantine.keep([drop(received_at=on_day(age_d)) for age_d in (0, 1, 2, 10, 20, 30)])
    environ = {**environ, "RETENTION_D": "0", "QUARANTINE_D": quarantine_d}
    ended = await asyncio.to_thread(run, "retain", **environ)
    assert (ended.returncode, ended.stderr) == (0, "")
    first, *others = ended.stdout.splitlines()
    assert first == "RETENTION_D is 0: events are kept for ever"
    assert [line for line in others if line.startswith("dropped: ")]
    assert await rows_of(connection) == rows


# check


async def findings(environ: Mapping[str, str], exit_code: int = 0) -> str:
    """Run `check`; return its line on quarantine."""
    ended = await asyncio.to_thread(run, "check", **environ)
    assert ended.returncode == exit_code, ended.stdout
    [line] = [line for line in ended.stdout.splitlines() if " quarantine: " in line]
    return line


async def test_check_reports_the_size(
    environ: Mapping[str, str], quarantine: TimescaleQuarantine, connection: Connection
) -> None:
    """The size, the bound and the days are reported; nearly full is a warning, off is said."""
    await quarantine.keep([drop()])
    assert await findings(environ) == "ok       quarantine: 0.0 of 1024 MB, 14 days"
    await connection.execute("UPDATE quarantine_usage SET bytes = 7500000")
    environ = {**environ, "QUARANTINE_MAX_MB": "10", "QUARANTINE_D": "3"}
    line = await findings(environ)
    assert line.startswith("warning  quarantine: 7.5 of 10 MB, 3 days: nearly full")
    line = await findings({**environ, "QUARANTINE_D": "0"})
    assert line.startswith("ok       quarantine: off, QUARANTINE_D is 0")


@pytest.fixture
async def limited(services: Services, database_url: str) -> AsyncIterator[str]:
    """The test's database for a role that had its rights before quarantine was there."""
    parts, role = urlsplit(database_url), "gateway_of_before"
    name, place = parts.path.strip("/"), parts.netloc.rpartition("@")[2]
    await services.execute(
        name,
        f"DROP ROLE IF EXISTS {role}",
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
        f"REVOKE ALL ON dropped, imports FROM {role}",
        f"REVOKE DELETE ON quarantine_usage, rejected FROM {role}",
    )
    yield parts._replace(netloc=f"{role}:{PASSWORD}@{place}").geturl()
    await services.execute(name, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


async def test_check_names_the_missing_rights(
    environ: Mapping[str, str], limited: str, connection: Connection
) -> None:
    """A role without its rights is a failure; with the grant that is named, all is well."""
    environ = {**environ, "DATABASE_URL": limited}
    line = await findings(environ, exit_code=1)
    assert line.startswith("FAILED   quarantine: ")
    grant = line[line.index("GRANT") :]
    assert " ON dropped, quarantine_usage, rejected, imports TO " in grant
    await connection.execute(grant)
    assert (await findings(environ)).startswith("ok ")
    quarantine = TimescaleQuarantine(limited, commit_timeout_s=5)
    await quarantine.keep([drop()])
    await quarantine.reject(
        [RejectedRequest(received_at=on_day(0), vendor="", reason="not_found", address="::1")]
    )
    assert await rows_of(connection) == 1
    await quarantine.close()
