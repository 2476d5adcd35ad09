"""The page on loading: its SQL misses no row of crossing commits, replays and removals."""

import re
from datetime import UTC, date, datetime, timedelta

import asyncpg
import pytest

from bench.testbed.process import ROOT
from sinks.timescale.schema import migrate
from sinks.timescale.sink import TimescaleSink
from tests.events import event, write
from tests.gateways import Services
from tests.services.test_timescale import skip_without_timescaledb

PAGE = (ROOT / "docs/loading.md").read_text()
CREATE, LOAD, DBT, DAYS, RELOAD, GONE, OLDEST, RANGE, BEFORE = re.findall(
    r"```sql\n(.*?)```", PAGE, re.DOTALL
)
NOW = datetime.now(UTC)
TENTH = datetime(2026, 11, 10, 12, tzinfo=UTC)


async def add(sink: TimescaleSink, name: str, behind_s: float, occurred_at: datetime = NOW) -> None:
    """Write a row that arrived so long ago; its day may have no chunk yet."""
    received_at = NOW - timedelta(seconds=behind_s)
    rows = [event(name, received_at=received_at, occurred_at=occurred_at)]
    await write(sink, rows, contested=True)


async def loaded(connection: asyncpg.Connection) -> set[str]:
    """The users of the copy."""
    rows = await connection.fetch("SELECT user_id FROM warehouse.events")
    assert len(rows) == len({row["user_id"] for row in rows})
    return {row["user_id"] for row in rows}


@pytest.fixture
async def copy(connection: asyncpg.Connection) -> asyncpg.Connection:
    """The database with an empty copy."""
    await connection.execute(CREATE)
    return connection


async def test_load_reads_rows_that_appear_behind_newer_ones(
    copy: asyncpg.Connection, sink: TimescaleSink
) -> None:
    """A row that appears 89 seconds behind the newest one is loaded, and none twice."""
    await add(sink, "newest", 0)
    await add(sink, "long ago", 10_000)
    await copy.execute(LOAD)
    assert await loaded(copy) == {"newest", "long ago"}
    await add(sink, "late", 89)
    await copy.execute(LOAD)
    assert await loaded(copy) == {"newest", "long ago", "late"}
    assert await copy.execute(LOAD) == "INSERT 0 0"


async def test_dbt_model_selects_the_same_rows(
    copy: asyncpg.Connection, sink: TimescaleSink
) -> None:
    """The model's first run selects all rows, an incremental one those of the look-back."""
    await add(sink, "newest", 0)
    await add(sink, "long ago", 10_000)
    config, *_ = re.findall(r"{{ config\((.*?)\) }}", DBT)
    assert config == "materialized='incremental', unique_key='event_id'"
    model = re.sub(r"{{ config.*?}}", "", DBT)
    for name, table in (("source('flokit', 'events')", "events"), ("this", "warehouse.events")):
        model = model.replace(f"{{{{ {name} }}}}", table)
    first = re.sub(r"{% if is_incremental\(\) %}.*?{% endif %}", "", model, flags=re.DOTALL)
    assert {row["user_id"] for row in await copy.fetch(first)} == {"newest", "long ago"}
    await copy.execute(LOAD)
    await add(sink, "late", 89)
    incremental = re.sub(r"{% .*? %}", "", model)
    assert {row["user_id"] for row in await copy.fetch(incremental)} == {"newest", "late"}


async def test_days_of_an_import_are_loaded_again(
    copy: asyncpg.Connection, sink: TimescaleSink
) -> None:
    """Rows with an old arrival are found by the days of `imports`, whichever time zone is set."""
    await add(sink, "newest", 0)
    await copy.execute(LOAD)
    await add(sink, "replayed", 10_000, TENTH)
    await copy.execute(LOAD)
    assert await loaded(copy) == {"newest"}
    await copy.execute(
        "INSERT INTO imports (kind, started_at, finished_at, first_day, last_day) VALUES "
        "('replay', now(), now(), '2026-11-10', '2026-11-11'), "
        "('replay', now(), NULL, '2026-11-11', '2026-11-12'), "
        "('replay', now(), NULL, NULL, NULL), "
        "('replay', now() - interval '3 days', now() - interval '2 days', '2026-11-01', "
        "'2026-11-02')"
    )
    for zone in ("UTC", "America/Los_Angeles", "Pacific/Auckland"):
        await copy.execute(f"SET timezone = '{zone}'")
        days = [row["day"] for row in await copy.fetch(DAYS)]
        assert days == [date(2026, 11, day) for day in (10, 11, 12)]
        await copy.execute(RELOAD)
        assert await loaded(copy) == {"newest", "replayed"}


async def test_rows_that_are_gone_are_found(copy: asyncpg.Connection, sink: TimescaleSink) -> None:
    """The query returns the rows of the copy that are gone from the table, and no other."""
    for name in ("kept", "removed"):
        await add(sink, name, 0)
    await copy.execute(LOAD)
    await copy.execute("DELETE FROM events WHERE user_id = 'removed'")
    [row] = await copy.fetch(GONE)
    assert row["event_id"].bytes == event("removed").event_id


async def test_open_transaction_of_a_gateway_is_found(
    connection: asyncpg.Connection, database_url: str
) -> None:
    """The query returns the start of the oldest transaction of a gateway with uncommitted rows."""
    assert await connection.fetchval(OLDEST) is None
    settings = {"application_name": "flokit-gateway"}
    writer = await asyncpg.connect(database_url, server_settings=settings)
    try:
        async with writer.transaction():
            started = await writer.fetchval("SELECT now()")
            assert await connection.fetchval(OLDEST) is None  # it has written nothing
            await writer.execute("INSERT INTO stable_events SELECT gen_random_uuid(), now()")
            assert await connection.fetchval(OLDEST) == started
    finally:
        await writer.close()


async def test_index_made_chunk_by_chunk_is_kept_by_the_migration(
    services: Services, connection: asyncpg.Connection
) -> None:
    """The migration keeps an index that the operator has created before, chunk by chunk."""
    await skip_without_timescaledb(services, connection)
    made = "SELECT oid FROM pg_class WHERE relname = 'events_received_at'"
    await connection.execute("DROP INDEX events_received_at")
    await connection.execute("DELETE FROM schema_migrations WHERE name = '0004_received_at'")
    await connection.execute(BEFORE)
    before = await connection.fetchval(made)
    assert await migrate(connection) == ["0004_received_at"]
    assert await connection.fetchval(made) == before
    [options] = await connection.fetch(
        "SELECT DISTINCT reloptions, indisvalid FROM pg_class JOIN pg_index ON indexrelid = oid "
        "WHERE relname LIKE '%events_received_at'"
    )
    assert tuple(options) == (["autosummarize=on"], True)


async def test_range_of_occurrence_leaves_rows_out(
    connection: asyncpg.Connection, sink: TimescaleSink
) -> None:
    """A load that restricts both times counts the rows of both ranges."""
    for name, age_d in (("young", 1), ("old", 61)):
        arrived = TENTH + timedelta(days=1)
        row = event(name, received_at=arrived, occurred_at=TENTH - timedelta(days=age_d))
        await write(sink, [row], contested=True)
    assert await connection.fetchval(RANGE) == 1
