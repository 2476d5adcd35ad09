"""`replay`: dropped callbacks become the events that they would have been, once."""

from collections.abc import Mapping
from datetime import date, timedelta
from pathlib import Path

import asyncpg
import pytest

from tests.drops import ARRIVED_AT, arrivals, drop, drops, in_quarantine, keep, replay
from tests.gateways import Gateways, Services, environment

WRITE = ("--yes", "--json")


@pytest.fixture
def environ(services: Services, database_url: str, tmp_path: Path) -> Mapping[str, str]:
    """The settings of a replay on the test's database."""
    return environment(database_url, services.redis_url, tmp_path)


async def test_replayed_callbacks_are_the_events_of_their_arrival(
    environ: Mapping[str, str], connection: asyncpg.Connection, gateways: Gateways
) -> None:
    """Each is one row under the identity and arrival that it had, and leaves quarantine."""
    kept = drops(120)
    await keep(environ["DATABASE_URL"], kept)
    ended = replay(environ)
    assert (ended.exit_code, ended.errors) == (0, "")
    assert ended.counts == (120, 120, 0, 0, 0)
    assert await in_quarantine(connection) == 0
    assert await arrivals(connection) == {f"u{n}": d.received_at for n, d in enumerate(kept)}
    gateway = await gateways.start()
    for user in ("u0", "u119"):
        assert (await gateway.callback(user_id=user)).json() == {
            "received": 1, "written": 0, "duplicate": 1, "dropped": 0
        }  # fmt: skip
    record = await connection.fetchrow("SELECT * FROM imports")
    assert record is not None
    assert (record["kind"], record["read"], record["written"]) == ("replay", 120, 120)
    assert record["first_day"] == record["last_day"] == date(2025, 6, 21)
    assert record["started_at"] <= record["finished_at"]


async def test_second_replay_writes_nothing(
    environ: Mapping[str, str], connection: asyncpg.Connection
) -> None:
    """After a replay nothing is selected, and the same callbacks kept again are duplicates."""
    await keep(environ["DATABASE_URL"], drops(60))
    assert replay(environ).counts == (60, 60, 0, 0, 0)
    assert replay(environ).counts == (0, 0, 0, 0, 0)
    assert await connection.fetchval("SELECT count(*) FROM imports") == 1
    await keep(environ["DATABASE_URL"], [*drops(60), *drops(60)])
    ended = replay(environ)
    assert ended.counts == (120, 0, 120, 0, 0)
    assert ended.report["days"] == []
    assert len(await arrivals(connection)) == 60
    assert await in_quarantine(connection) == 0


async def test_pages_of_any_arrival_are_all_read(
    environ: Mapping[str, str], connection: asyncpg.Connection
) -> None:
    """More rows of one instant than a page holds, and gaps of days, leave nothing out."""
    at_once = [drop(f"same{n}") for n in range(1_100)]
    spread = [
        drop(f"day{n}", received_at=ARRIVED_AT + timedelta(days=n, microseconds=n))
        for n in range(12)
    ]
    await keep(environ["DATABASE_URL"], [*at_once, *spread])
    assert replay(environ).counts == (1_112, 1_112, 0, 0, 0)
    assert await in_quarantine(connection) == 0
    assert len(await arrivals(connection)) == 1_112
