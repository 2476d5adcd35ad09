"""The schema: on plain PostgreSQL too, migrated by many at once, and the analysts' view."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal, localcontext

import asyncpg
import pytest

from app.dev import embedded
from app.event import Outcome
from sinks.timescale import retention, schema
from sinks.timescale.sink import TimescaleSink
from tests.events import OCCURRED_AT, event, write
from tests.gateways import Gateways, Services
from tests.services.test_timescale import skip_without_timescaledb

Connection = asyncpg.Connection


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """Servers without TimescaleDB."""
    with embedded.start(tmp_path_factory.mktemp("plain"), fallback=True) as servers:
        yield Services(servers.database_url, servers.redis_url, servers.description)


@pytest.mark.services
async def test_plain_postgresql_is_enough(
    plain: Services, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without TimescaleDB the same migration makes a plain table, and all else is the same."""
    connection = await asyncpg.connect(plain.database_url)
    assert await schema.migrate(connection) == list(schema.migrations())
    assert await schema.timescaledb_version(connection) is None
    gateways = Gateways(plain.database_url, plain.redis_url, tmp_path_factory.mktemp("gateway"))
    gateway = await gateways.start()
    for written, parameters in (
        (1, {"transaction_id": "t1"}),
        (0, {"transaction_id": "t1", "created_at": "1750500001"}),
        (1, {"revenue": "1.5"}),
        (0, {"revenue": "1.5"}),
    ):
        answer = await gateway.callback(**parameters)
        assert answer.json == {
            "received": 1, "written": written, "duplicate": 1 - written, "dropped": 0,
        }  # fmt: skip
    assert await connection.fetchval("SELECT sum(revenue_amount) FROM revenue_events") == Decimal(
        "1.5"
    )
    lines = [line async for line in retention.retain(connection, 62)]
    assert lines == [line for line in lines if " rows deleted " in line]
    assert await connection.fetchval("SELECT count(*) FROM events") == 0
    assert await connection.fetchval("SELECT count(*) FROM stable_events") == 0
    await gateways.stop()
    await connection.close()


BY_ARRIVAL = "brin (received_at) WITH (autosummarize='on')"
INDEXES = {
    "events": ["(occurred_at, event_id)", "(workspace_id, event_type, occurred_at)"],
    "dropped": ["(workspace_id, reason, subject, received_at)"],
}


@pytest.mark.parametrize("table", INDEXES)
async def test_table_is_a_hypertable(
    services: Services, connection: Connection, table: str
) -> None:
    """On TimescaleDB, the large tables are hypertables by day, without the default index."""
    await skip_without_timescaledb(services, connection)
    dimension = await connection.fetchrow(
        "SELECT column_name, time_interval FROM timescaledb_information.dimensions "
        "WHERE hypertable_name = $1",
        table,
    )
    assert dimension is not None
    column = {"events": "occurred_at", "dropped": "received_at"}[table]
    assert tuple(dimension) == (column, timedelta(days=1))
    found = await connection.fetch("SELECT indexdef FROM pg_indexes WHERE tablename = $1", table)
    kinds = sorted(record[0].partition(" USING ")[2] for record in found)
    assert kinds == [BY_ARRIVAL, *(f"btree {columns}" for columns in INDEXES[table])]


async def test_chunks_are_made_ahead(services: Services, connection: Connection) -> None:
    """The chunks of today and tomorrow are there before they are needed."""
    await skip_without_timescaledb(services, connection)
    for table in ("events", "dropped"):
        covered = await connection.fetchval(
            "SELECT count(*) FROM timescaledb_information.chunks WHERE hypertable_name = $1 "
            "AND range_start <= now() + interval '1 day' AND range_end > now()",
            table,
        )
        assert covered == 2
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0


async def test_concurrent_migrations_take_turns(services: Services) -> None:
    """Started from several places on an empty database, one migrates and the others wait."""
    name = "gateway_migrated_at_once"
    await services.execute(None, f"CREATE DATABASE {name}")
    connections = [await asyncpg.connect(services.url_of(name)) for _ in range(4)]
    applied = await asyncio.gather(*map(schema.migrate, connections))
    assert sorted(applied, key=len) == [[], [], [], list(schema.migrations())]
    for connection in connections:
        await connection.close()
    await services.execute(None, f"DROP DATABASE {name} WITH (FORCE)")


AMOUNTS: list[tuple[dict[str, str], str | None]] = [
    ({"revenue": "49.99"}, "49.99"),
    ({"revenue": "345", "revenue_float": "3.45"}, "3.45"),
    ({"revenue": "49.990"}, "49.990"),
    ({"revenue": "-4.99"}, "-4.99"),
    ({"revenue": "+0.5"}, "0.5"),
    ({"revenue": ".5"}, "0.5"),
    ({"revenue": "5."}, "5"),
    ({"revenue": "9" * 400}, "9" * 400),
    ({"revenue": "9" * 140_000}, None),
    ({"revenue": "0." + "9" * 20_000}, None),
    ({"revenue": "345", "revenue_float": "NaN"}, None),
    ({"revenue": "1e3"}, "1000"),
    ({"revenue": "-1.2E-05"}, "-0.000012"),
    ({"revenue": ".5e+2"}, "50"),
    ({"revenue": "1e999"}, "1" + "0" * 999),
    ({"revenue": "1e-999"}, "0." + "0" * 998 + "1"),
    ({"revenue": "." + "1" * 15_990 + "e-999"}, None),
    ({"revenue": "0." + "0" * 15_990 + "e-999"}, None),
    ({"revenue": "1" * 15_990 + "e+999"}, None),
    *(
        ({"revenue": text}, None)
        for text in ("", "NaN", "Infinity", "-inf", "e3", "1e", "1e1000", "12e999", "1.2e-999",
                     "1e+", "1e3.5", "1e 3", "$5.00", "5,00", "1_000", ".", "-",
                     "0x10", "5 ", "\u0665", "1.2.3", "--1", "5\n")
    ),
]  # fmt: skip


async def test_view_never_fails(connection: Connection, sink: TimescaleSink) -> None:
    """A plain decimal becomes a number, any other text null, and the sum is that of the numbers."""
    batch = [
        event(str(number), properties=sent | {"currency": "eur"})
        for number, (sent, _) in enumerate(AMOUNTS)
    ]
    assert set(await sink.write(batch)) == {Outcome.WRITTEN}
    records = await connection.fetch("SELECT user_id, revenue_amount, currency FROM revenue_events")
    amounts = {int(record["user_id"]): record["revenue_amount"] for record in records}
    for number, (_, amount) in enumerate(AMOUNTS):
        assert amounts[number] == (None if amount is None else Decimal(amount))
    assert {record["currency"] for record in records} == {"EUR"}
    read = [Decimal(amount) for _, amount in AMOUNTS if amount is not None]
    [day] = await connection.fetch("SELECT * FROM revenue_by_day")
    assert (day["day"], day["events"]) == (
        OCCURRED_AT.replace(hour=0, minute=0, second=0, microsecond=0),
        len(AMOUNTS),
    )
    assert day["events_without_amount"] == len(AMOUNTS) - len(read)
    with localcontext(prec=100_000):
        assert day["revenue"] == sum(read)


async def test_retention_keeps_young_events(connection: Connection, sink: TimescaleSink) -> None:
    """Old events go, and their stable IDs with them; young ones stay, and theirs."""
    now = datetime.now(UTC)
    for name, age_d in (("old", 100), ("young", 50), ("new", 0)):
        occurred_at = now - timedelta(days=age_d)
        batch = [event(name, occurred_at=occurred_at, has_stable_id=True),
                 event(f"{name} too", occurred_at=occurred_at)]  # fmt: skip
        await write(sink, batch, contested=True)  # their days may have no chunk yet
    assert [line async for line in retention.retain(connection, 62)]
    users = await connection.fetch("SELECT user_id FROM events ORDER BY user_id")
    assert [user[0] for user in users] == ["new", "new too", "young", "young too"]
    assert await connection.fetchval("SELECT count(*) FROM stable_events") == 2


ENTER = """
INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token, event_type,
    properties)
SELECT gen_random_uuid(), now() - age * interval '1 day', now(), 'w', 'v', 'a', 't', '{}'
FROM generate_series($1::int, $2) AS age
"""


async def test_retention_drops_chunks_in_portions(
    services: Services, connection: Connection
) -> None:
    """Chunks go in portions, the oldest first, however many there are."""
    await skip_without_timescaledb(services, connection)
    for first in range(63, 1663, 100):  # not all in one transaction either
        await connection.execute(ENTER, first, first + 99)
    lines = [line async for line in retention.retain(connection, 62)]
    assert "events: 100 chunks dropped so far" in lines
    assert [line for line in lines if line.startswith("events: 1600 chunks dropped that ended")]
    assert await connection.fetchval("SELECT count(*) FROM events") == 0


async def test_retention_keeps_young_rows_of_other_partitions(connection: Connection) -> None:
    """A young row stays that has the row identifier of an old one in another partition."""
    await connection.execute(
        "CREATE SCHEMA parts; SET search_path = parts, public; CREATE TABLE events "
        "(LIKE public.events) PARTITION BY RANGE (occurred_at); "
        "CREATE TABLE stable_events (LIKE public.stable_events)"
    )
    cut = datetime.now(UTC) - timedelta(days=30)
    await connection.execute(
        f"CREATE TABLE young PARTITION OF events FOR VALUES FROM ('{cut}') TO (MAXVALUE); "
        "CREATE TABLE rest PARTITION OF events DEFAULT"
    )
    await connection.execute(ENTER, 0, 9)
    await connection.execute(ENTER, 63, 72)
    assert [line async for line in retention.retain(connection, 62)]
    young = await connection.fetchval("SELECT count(*) FROM events WHERE occurred_at > $1", cut)
    assert (young, await connection.fetchval("SELECT count(*) FROM events")) == (10, 10)


@pytest.mark.parametrize("retention_d", [0, 62, 400])
async def test_event_near_its_retention_is_refused(gateways: Gateways, retention_d: int) -> None:
    """No row is dropped within 31 days of its arrival: an event that would be is refused."""
    gateway = await gateways.start(RETENTION_D=str(retention_d))
    now = datetime.now(UTC).timestamp()
    # From its first answer on the gateway knows that its clock is right.
    assert (await gateway.callback(created_at=f"{now:.0f}")).status == 200
    for age_d, accepted in (
        (retention_d - 31 - 0.01, True),
        (retention_d - 31 + 0.01, retention_d == 0),
    ):
        answer = await gateway.callback(
            created_at=f"{now - age_d * 86_400:.0f}", user_id=str(age_d)
        )
        expected = accepted and age_d > -1
        assert answer.json == {
            "received": 1, "written": int(expected), "duplicate": 0, "dropped": int(not expected),
        }  # fmt: skip


async def test_role_without_usage_is_no_missing_migration(
    connection: Connection,
) -> None:
    """A schema that the role may not use is named; one that is not searched hides nothing."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("CREATE ROLE without_usage")
        await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        await connection.execute("SET LOCAL ROLE without_usage")
        with pytest.raises(schema.SchemaError, match="lacks USAGE on the schema public"):
            await schema.missing_migrations(connection)
        await connection.execute("SET LOCAL search_path = pg_catalog")
        assert await schema.missing_migrations(connection) == list(schema.migrations())
    finally:
        await transaction.rollback()
    assert await schema.missing_migrations(connection) == []
