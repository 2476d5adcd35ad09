"""The page on the hub: its SQL, on two cells, returns the right sums, which the cells compute."""

import asyncio
import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest

from app.commands.hub import TABLES, HubCell
from app.dev.programs import Programs
from app.event import Event
from bench.testbed.database import connected, execute
from tests.deploying import statements
from tests.events import event, write
from tests.gateways import Services
from tests.hubs import DATABASES, PAGE, Hub, Hubs, blocks, own, sink_of
from tests.services.test_timescale import skip_without_timescaledb

pytestmark = pytest.mark.services

CELLS = [HubCell("eu-1", ["ws_demo", "ws_split"]), HubCell("eu-2", ["ws_other", "ws_split"])]
TODAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
JUNE = datetime(2025, 6, 10, 12, tzinfo=UTC)
NOON = TODAY - timedelta(days=2) + timedelta(hours=12)
DAY = JUNE.replace(hour=0)
# More than a query may fetch: rows of each cell that every query of the page finds.
MANY = 400


def sent(name: str, occurred_at: datetime = JUNE, /, **fields: Any) -> Event:
    """An event of the workspace of the queries, without a revenue."""
    known: dict[str, Any] = {
        "workspace_id": "ws_demo",
        "occurred_at": occurred_at,
        "properties": {},
    }
    return event(name, **known | fields)


def paid(name: str, occurred_at: datetime, revenue: str, /, **fields: Any) -> Event:
    """The same with a revenue."""
    environment = {"environment": fields.pop("environment")} if "environment" in fields else {}
    properties = {"revenue": revenue, "currency": fields.pop("currency", "usd"), **environment}
    return sent(name, occurred_at, properties=properties, **fields)


ROWS = {
    "eu-1": [
        paid("usr_abc123", JUNE, "4.99", country="DE"),
        paid("b", JUNE + timedelta(days=1), "1", currency="EUR", country="DE"),
        paid("b2", JUNE + timedelta(days=1), "1,5", currency="EUR", user_id="b", country="DE"),
        sent("i", event_type="app_install", country="DE"),
        paid("tester", JUNE, "999", environment="sandbox"),
        paid("july", JUNE + timedelta(days=30), "888"),
        paid("week", NOON, "7", workspace_id="ws_split"),
        paid("month", NOON - timedelta(days=30), "777", workspace_id="ws_split"),
    ],
    "eu-2": [
        # The user and the workspace of the other cell, which a map that is old does not know.
        paid("moved", JUNE, "2", country="FR"),
        paid("week2", NOON, "8", workspace_id="ws_split"),
        paid("tester2", NOON, "999", workspace_id="ws_split", environment="sandbox"),
        paid("other", NOON, "9.5", workspace_id="ws_other", currency="EUR"),
    ],
}  # fmt: skip
# Of each cell: in June, so that each query but that of the last week has to leave them in the cell.
BULK = """
INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token, event_type,
    user_id, country, properties)
SELECT gen_random_uuid(), timestamptz '{day}' + n * interval '1 second', now(), 'ws_demo', 'adjust',
    'abc123token', 'app_install', 'many', 'US', '{{"revenue": "0.01", "currency": "USD"}}'
FROM generate_series(1, {many}) AS n
"""
BULK_DAYS = (JUNE.replace(day=20), NOON)
IN_JUNE = JUNE.replace(day=20, hour=0)
CENTS = Decimal(MANY) / 100
ANSWERS: Mapping[str, list[tuple[Any, ...]]] = {
    "Revenue of a workspace by day": [
        ("eu-1", DAY, "USD", Decimal("4.99")),
        ("eu-2", DAY, "USD", Decimal(2)),
        ("eu-1", DAY + timedelta(days=1), "EUR", Decimal(1)),
        ("eu-1", IN_JUNE, "USD", CENTS),
        ("eu-2", IN_JUNE, "USD", CENTS),
    ],
    "Revenue of all workspaces in the last week": [
        ("ws_demo", "USD", 2 * CENTS, 2 * MANY),
        ("ws_other", "EUR", Decimal("9.5"), 1),
        ("ws_split", "USD", Decimal(15), 2),
    ],
    "Events by day and type, in all cells": [
        (DAY, "app_install", 1),
        (DAY, "purchase", 2),
        (DAY + timedelta(days=1), "purchase", 2),
        (IN_JUNE, "app_install", 2 * MANY),
    ],
    "Installs and buyers by country": [
        ("eu-1", "ws_demo", "US", MANY, 0),
        ("eu-2", "ws_demo", "US", MANY, 0),
        ("eu-1", "ws_demo", "DE", 1, 2),
        ("eu-2", "ws_demo", "FR", 0, 1),
    ],
    "The events of one user": [(JUNE, "purchase", "4.99")],
}  # fmt: skip
OTHER_BLOCKS = {"Setting it up", "A cell that is down"}


@pytest.fixture(scope="module")
def hubs(
    services: Services,
    template: str,
    postgres_programs: Programs,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Hubs]:
    """The cells with their rows."""
    psql = postgres_programs.bin_folder / "psql"
    if not psql.exists():
        pytest.skip("psql and postgres_fdw are in Debian's packages only")
    hubs = Hubs(services, tmp_path_factory.mktemp("hub"), psql)
    [role] = statements("A role for the hub")
    asyncio.run(hubs.start(template, role))
    asyncio.run(fill(hubs))
    yield hubs
    asyncio.run(hubs.stop())


async def fill(hubs: Hubs) -> None:
    """Write the rows of the cells."""
    for cell, rows in ROWS.items():
        async with sink_of(hubs.url(cell)) as sink:
            await write(sink, rows, contested=True)  # their days may have no chunk yet
        await execute(
            hubs.url(cell), *(BULK.format(day=day, many=MANY) for day in BULK_DAYS), "ANALYZE"
        )


@pytest.fixture(scope="module")
def hub(hubs: Hubs) -> Hub:
    """A hub over both cells, with an analyst; its SQL was run twice."""
    hub = asyncio.run(hubs.make("hub", CELLS))
    [create] = [block for block in blocks("Setting it up") if "CREATE ROLE" in block]
    asyncio.run(hub.execute(create))
    ended = hub.run_without_variables(CELLS)
    assert (ended.returncode, ended.stderr) == (0, "")
    return hub


def scans(node: dict[str, Any]) -> list[dict[str, Any]]:
    """The foreign scans of a plan."""
    below = [scan for child in node.get("Plans", []) for scan in scans(child)]
    return [node, *below] if node["Node Type"] == "Foreign Scan" else below


async def plan_of(connection: asyncpg.Connection, query: str) -> list[dict[str, Any]]:
    """Run a query, and return its foreign scans."""
    explained = f"EXPLAIN (ANALYZE, VERBOSE, FORMAT JSON) {query}"
    return scans(json.loads(await connection.fetchval(explained))[0]["Plan"])


def test_every_block_of_the_page_is_run() -> None:
    """Each section with SQL is a query with an answer, or has a test of its own."""
    sections = PAGE.split("\n## ")[1:]
    with_sql = {section.partition("\n")[0] for section in sections if "```sql" in section}
    assert with_sql == ANSWERS.keys() | OTHER_BLOCKS


@pytest.mark.parametrize("heading", ANSWERS)
async def test_query_returns_the_right_rows_of_both_cells(hub: Hub, heading: str) -> None:
    """A documented query returns the sums over both cells, without the sandbox."""
    [query] = blocks(heading)
    async with hub.analyst() as connection:
        rows = await connection.fetch(query)
    assert [tuple(row.values()) for row in rows] == ANSWERS[heading]


@pytest.mark.parametrize("heading", ANSWERS)
async def test_cells_compute_the_query(hub: Hub, heading: str) -> None:
    """Each cell applies all conditions, and sends sums or rows of a view: few of hundreds."""
    [query] = blocks(heading)
    async with hub.analyst() as connection:
        found = await plan_of(connection, query)
    assert len(found) == (1 if "cells_of_workspace" in query else len(DATABASES))
    for scan in found:
        assert "Filter" not in scan
        assert scan["Actual Rows"] * scan["Actual Loops"] < MANY / 10
        if "FROM public.cell_events" in scan["Remote SQL"] and "GROUP BY" in query:
            assert "GROUP BY" in scan["Remote SQL"]
            assert scan["Async Capable"]


@pytest.mark.parametrize(
    ("condition", "group"),
    [
        ("day >= now() - interval '7 days'", "cell"),
        ("day >= (SELECT now() - interval '7 days')", "workspace_id"),
        ("day >= (SELECT now() - interval '7 days')", "cell, coalesce(currency, 'none')"),
    ],
)
async def test_cells_do_not_compute_other_queries(hub: Hub, condition: str, group: str) -> None:
    """As the page warns, these conditions and groups are computed in the hub."""
    query = f"SELECT sum(revenue) FROM revenue_by_day WHERE {condition} GROUP BY {group}"
    async with hub.analyst() as connection:
        for scan in await plan_of(connection, query):
            assert "GROUP BY" not in scan["Remote SQL"]


async def test_cell_reads_the_days_of_a_range_only(
    hub: Hub, hubs: Hubs, services: Services
) -> None:
    """The views of a cell plan and read the chunks of the days in question, also for the hub."""
    async with hub.analyst() as connection:
        [query] = blocks("Revenue of a workspace by day")
        remote = (await plan_of(connection, query))[0]["Remote SQL"]
    async with connected(hubs.url("eu-1")) as connection:
        await skip_without_timescaledb(services, connection)
        chunks = await connection.fetch(
            "SELECT range_start >= '2025-06-01 00:00Z' "
            "AND range_end <= '2025-07-01 00:00Z' AS in_june "
            "FROM timescaledb_information.chunks WHERE hypertable_name = 'events'"
        )
        plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {remote}"))
    assert len(set(re.findall(r"_hyper_\w+_chunk", plan))) == sum(
        chunk["in_june"] for chunk in chunks
    )
    assert not all(chunk["in_june"] for chunk in chunks)


async def test_tables_have_the_columns_of_the_cells(hub: Hub, hubs: Hubs) -> None:
    """Names and types are those of the cells' views, and the page names them."""
    query = (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        "WHERE attrelid = $1::regclass AND attnum > 0 AND NOT attisdropped"
    )
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    for table, (view, _) in TABLES.items():
        async with connected(hub.url) as connection:
            here = {tuple(row) for row in await connection.fetch(query, table)}
        async with connected(hubs.url("eu-1")) as connection:
            assert here == {tuple(row) for row in await connection.fetch(query, view)}
            documented = set(re.findall(r"`(\w+)`", listed[table]))
            if table == "events":
                rows = await connection.fetch(query, table)
                documented = (documented - {"events"}) | {row[0] for row in rows}
        assert {name for name, _ in here} == documented


async def test_cell_that_is_down_is_named_and_can_be_detached(hub: Hub, services: Services) -> None:
    """Its queries fail; those of another cell do not, and none after it was detached."""
    detach, attach = blocks("A cell that is down")
    [query] = blocks("Events by day and type, in all cells")
    [of_one_cell] = blocks("The events of one user")
    database = DATABASES["eu-2"]
    without = [
        (DAY, "app_install", 1),
        (DAY, "purchase", 1),
        (DAY + timedelta(days=1), "purchase", 2),
        (IN_JUNE, "app_install", MANY),
    ]
    await services.execute(
        None,
        f"ALTER DATABASE {database} ALLOW_CONNECTIONS false",
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'",
    )
    try:
        async with hub.analyst() as connection:
            with pytest.raises(asyncpg.PostgresError, match='could not connect to server "eu-2"'):
                await connection.fetch(query)
            assert len(await connection.fetch(of_one_cell)) == 1
            await hub.execute(detach)
            try:
                assert [tuple(row.values()) for row in await connection.fetch(query)] == without
            finally:
                await hub.execute(attach)
    finally:
        await services.execute(None, f"ALTER DATABASE {database} ALLOW_CONNECTIONS true")
    async with hub.analyst() as connection:
        rows = await connection.fetch(query)
    assert [tuple(row.values()) for row in rows] == ANSWERS["Events by day and type, in all cells"]


WRITES = (
    "INSERT INTO {table} (cell, workspace_id) VALUES ('eu-1', 'mine')",
    "UPDATE {table} SET workspace_id = 'mine'",
    "DELETE FROM {table}",
)


@pytest.mark.parametrize("table", TABLES)
async def test_nobody_writes(hub: Hub, hubs: Hubs, table: str) -> None:
    """Neither an analyst nor the owner of the hub, nor the hub's role in a cell."""
    rights = "SELECT privilege_type FROM information_schema.role_table_grants WHERE table_name = $1"
    view, _ = TABLES[table]
    async with (
        hub.analyst() as analyst,
        connected(hub.url) as owner,
        connected(hubs.url("eu-1")) as cell,
    ):
        assert [row[0] for row in await analyst.fetch(rights, table)] == ["SELECT"]
        before = await cell.fetchval("SELECT array_agg(event_id ORDER BY event_id) FROM events")
        await cell.execute(own("SET ROLE flokit_hub"))
        assert [row[0] for row in await cell.fetch(rights, view)] == ["SELECT"]
        for write in WRITES:
            for connection in (analyst, owner):
                with pytest.raises(asyncpg.PostgresError):
                    await connection.execute(write.format(table=table))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await cell.execute("DELETE FROM cell_events")
        await cell.execute("RESET ROLE")
        after = await cell.fetchval("SELECT array_agg(event_id ORDER BY event_id) FROM events")
        assert after == before


async def test_analyst_sees_no_password(hub: Hub) -> None:
    """The passwords of the cells are hidden from analysts, and not in the SQL of the hub."""
    assert "change-me" in hub.hubs.variables()
    async with hub.analyst() as connection:
        options = await connection.fetch("SELECT umoptions FROM pg_user_mappings")
        assert [row[0] for row in options] == [None] * len(DATABASES)
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("SELECT * FROM pg_user_mapping")


async def test_cell_is_added_later_and_moved(hubs: Hubs, services: Services) -> None:
    """Run again, the SQL adds a cell and changes no other; addresses are changed in place."""
    grown = await hubs.make("grown", CELLS[:1])
    alter = next(block for block in blocks("Setting it up") if "ALTER SERVER" in block)
    count = "SELECT count(DISTINCT cell), cells_of_workspace('ws_other') FROM events_by_day"
    moved = "127.0.0.2"  # none of the servers listens there: its own address is not used any more
    async with connected(grown.url) as connection:
        assert tuple(await connection.fetchrow(count) or ()) == (1, ["eu-1"])
        await grown.execute(alter.replace("10.0.1.9", moved).replace("verify-full", "prefer"))
        assert grown.run(CELLS).returncode == 0
        options = "SELECT array_to_string(srvoptions, ' ') FROM pg_foreign_server ORDER BY srvname"
        first, second = [row[0] for row in await connection.fetch(options)]
        assert f"host={moved} " in first
        assert "sslmode=prefer" in first
        assert "sslmode" not in second
        url = re.findall(r"@(.*?):", services.database_url)[0]
        await grown.execute(f"ALTER SERVER \"eu-1\" OPTIONS (SET host '{url}')")
        assert tuple(await connection.fetchrow(count) or ()) == (2, ["eu-2"])
        assert await connection.fetchval("SELECT cells_of_workspace('ws_split')") == [
            "eu-1",
            "eu-2",
        ]
        assert await connection.fetchval("SELECT cells_of_workspace('ws_new')") == ["eu-1", "eu-2"]


async def test_database_of_a_cell_is_refused(hubs: Hubs) -> None:
    """Run in a cell by mistake, the SQL changes nothing there."""
    cell = Hub(hubs.url("eu-1"), hubs)
    ended = cell.run(CELLS)
    assert ended.returncode != 0
    assert "this is the database of a cell" in ended.stderr
    async with connected(cell.url) as connection:
        assert await connection.fetchval("SELECT to_regnamespace('cells')") is None
