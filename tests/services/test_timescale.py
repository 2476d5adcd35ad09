"""The sink on a real database: events that are written, refused, contested, and never lost."""

import asyncio
import gc
import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.event import Event, Outcome
from bench.testbed.process import PATIENCE_S
from sinks.timescale.schema import migrate, timescaledb_version
from sinks.timescale.session import Session, open_session
from sinks.timescale.sink import TimescaleSink
from tests.events import OCCURRED_AT, event, events, generation_of, stored, until_lost, write
from tests.gateways import Services

WRITTEN, DUPLICATE, REFUSED, CONTESTED = (
    Outcome.WRITTEN, Outcome.DUPLICATE, Outcome.REFUSED, Outcome.CONTESTED,
)  # fmt: skip
Connection = asyncpg.Connection
IS_ANYBODY_WAITING = (
    "SELECT EXISTS (SELECT FROM pg_locks JOIN pg_stat_activity USING (pid) "
    "WHERE NOT granted AND datname = current_database())"
)

# Makes all but each so many statements that write events the victim of a deadlock. No rollback
# takes back the number of a sequence.
VICTIM = """
CREATE OR REPLACE FUNCTION victim() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- Not the statements that make a chunk.
    IF current_query() NOT LIKE '%DELETE%' AND nextval('attempts') % {number} > 0 THEN
        RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01';
    END IF;
    RETURN NULL;
END $$;
DROP SEQUENCE IF EXISTS attempts;
CREATE SEQUENCE attempts;
CREATE OR REPLACE TRIGGER victim BEFORE INSERT ON events
FOR EACH STATEMENT EXECUTE FUNCTION victim()
"""


async def skip_without_timescaledb(services: Services, connection: Connection) -> None:
    """Skip the test, with the reason, where the server has no TimescaleDB."""
    if await timescaledb_version(connection) is None:
        pytest.skip(f"no TimescaleDB: {services.description}")


@pytest.mark.parametrize("contested", [False, True])
async def test_every_column_arrives(
    sink: TimescaleSink, connection: Connection, contested: bool
) -> None:
    """COPY and INSERT write the same row, field for field."""
    full = event(
        "full", adid="adid", idfa="IDFA", gps_adid="gps", os_name="ios", country="DE",
        properties={"a": 'quote " backslash \\ tab \t 日本 😀', "b": ""},
    )  # fmt: skip
    for written in (full, event("sparse", user_id=None, properties={})):
        assert await write(sink, [written], contested=contested) == [WRITTEN]
        record = await connection.fetchrow(
            "SELECT * FROM events WHERE event_id = $1", written.event_id.hex()
        )
        assert record is not None
        row = dict(record) | {"properties": json.loads(record["properties"])}
        row["event_id"] = row["event_id"].bytes
        fields = {name: getattr(written, name) for name in row}
        assert row == fields


async def test_duplicates_cost_new_events_nothing(
    sink: TimescaleSink, connection: Connection
) -> None:
    """One row that is there already costs its neighbours nothing, and is told apart."""
    assert await sink.write(events("a", "b")) == [WRITTEN, WRITTEN]
    outcomes = await sink.write(events("c", "a", "d", "b"))
    assert outcomes == [WRITTEN, DUPLICATE, WRITTEN, DUPLICATE]
    assert await stored(connection) == {"a", "b", "c", "d"}


async def test_failed_copy_keeps_no_events(sink: TimescaleSink) -> None:
    """Events of a batch that was not one COPY are freed with it, without a collection."""
    assert await sink.write(events("a", "b")) == [WRITTEN, WRITTEN]
    gc.collect()
    before = live_events()  # those of other tests
    gc.disable()
    try:
        assert await sink.write(events("a", "b", "c")) == [DUPLICATE, DUPLICATE, WRITTEN]
        refused = event("e", user_id="\ud800")
        assert await sink.write([event("d"), refused]) == [WRITTEN, CONTESTED]
        assert await sink.write_contested(refused) == REFUSED
        del refused
        assert live_events() == before
    finally:
        gc.enable()


def live_events() -> int:
    """The number of events in memory."""
    return sum(isinstance(each, Event) for each in gc.get_objects())


async def test_stable_id_at_another_time_is_a_duplicate(
    sink: TimescaleSink, connection: Connection
) -> None:
    """An event with a stable ID is one event, at any time, by COPY or INSERT."""
    later = OCCURRED_AT + timedelta(days=3)
    first = event("a", has_stable_id=True)
    again = event("a", has_stable_id=True, occurred_at=later)
    assert await sink.write([first, event("b")]) == [WRITTEN, WRITTEN]
    assert await sink.write([again, event("c")]) == [DUPLICATE, WRITTEN]
    assert await sink.write([again, event("b"), event("d")]) == [
        DUPLICATE, DUPLICATE, WRITTEN,
    ]  # fmt: skip
    assert await sink.write_contested(again) == DUPLICATE
    assert await stored(connection) == {"a", "b", "c", "d"}
    assert await connection.fetchval("SELECT count(*) FROM stable_events") == 1


async def test_stable_id_is_not_entered_without_its_row(
    sink: TimescaleSink, connection: Connection
) -> None:
    """A write that fails leaves no stable ID behind, which would make the retry a duplicate."""
    await connection.execute("ALTER TABLE events ADD CONSTRAINT c CHECK (country IS NOT NULL)")
    known = event("a", has_stable_id=True)
    assert await sink.write([known]) == [CONTESTED]
    with pytest.raises(asyncpg.CheckViolationError):
        await sink.write_contested(known)
    assert await connection.fetchval("SELECT count(*) FROM stable_events") == 0
    await connection.execute("ALTER TABLE events DROP CONSTRAINT c")
    assert await sink.write([event("a", has_stable_id=True)]) == [WRITTEN]


async def test_batch_is_one_copy(sink: TimescaleSink, connection: Connection) -> None:
    """A batch without conflicts is one COPY, with and without stable IDs."""
    await connection.execute(
        "CREATE TABLE statements (text text)",
    )
    await connection.execute(
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO statements VALUES (current_query()); RETURN NEW; END $$"
    )
    await connection.execute(
        "CREATE TRIGGER note BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION note()"
    )
    assert await sink.write(events(*"abc")) == [WRITTEN] * 3
    assert await sink.write(events(*"def", has_stable_id=True)) == [WRITTEN] * 3
    statements = [record[0] for record in await connection.fetch("SELECT * FROM statements")]
    assert len(statements) == 6
    assert {statement.split()[0] for statement in statements} == {"COPY"}


@pytest.mark.parametrize(
    "fault",
    [
        "ALTER TABLE events ADD CONSTRAINT c CHECK (workspace_id = 'nobody')",
        "ALTER TABLE events ADD COLUMN more text NOT NULL",
        "ALTER TABLE events DROP COLUMN country CASCADE",
        "DROP TABLE stable_events",
        "ALTER TABLE events ALTER COLUMN country SET NOT NULL",
        "ALTER TABLE stable_events ADD CONSTRAINT c CHECK (false)",
    ],
)
async def test_fault_of_the_schema_refuses_nothing(
    sink: TimescaleSink, connection: Connection, fault: str
) -> None:
    """An error that hits more than one event is our own fault: each one raises, none is lost."""
    await connection.execute(fault)
    for known in (event("a", has_stable_id=True), event("b", has_stable_id=True)):
        with pytest.raises(asyncpg.PostgresError):
            await sink.write_contested(known)
    # A neighbour that goes another way proves nothing.
    try:
        outcomes = await sink.write([event("c"), event("d", has_stable_id=True)])
    except asyncpg.PostgresError:
        pass
    else:
        assert outcomes in ([WRITTEN, CONTESTED], [CONTESTED, CONTESTED])
    assert not {"a", "b", "d"} & await stored(connection)


async def test_contested_event_waits_for_the_other_commit(
    sink: TimescaleSink, connection: Connection
) -> None:
    """While another writer has an event under way, it is neither written nor a duplicate."""
    async with asyncio.timeout(PATIENCE_S):
        transaction = connection.transaction()
        await transaction.start()
        await insert(connection, event("a"))
        contested = asyncio.create_task(sink.write_contested(event("a")))
        await until_waiting(connection)
        assert not contested.done()
        await transaction.commit()
        assert await contested == DUPLICATE
    assert await stored(connection) == {"a"}


async def test_frozen_writer_delays_only_contested_events(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are locked for ever fail alone, and their neighbours are written at once."""
    # To wait so long for each row would take longer than the commit may.
    for module in ("sink", "writes"):
        monkeypatch.setattr(f"sinks.timescale.{module}.BATCH_LOCK_TIMEOUT_S", PATIENCE_S / 50)
    sink = TimescaleSink(database_url, commit_timeout_s=PATIENCE_S)
    await sink.write(events("z"))  # the chunk is there
    frozen = [f"frozen-{number}" for number in range(60)]
    transaction = connection.transaction()
    await transaction.start()
    for known in events(*frozen):
        await insert(connection, known)
    outcomes = await sink.write(events(*"abc", *frozen, *"de"))
    assert outcomes == [WRITTEN] * 3 + [CONTESTED] * 60 + [WRITTEN] * 2
    with pytest.raises(asyncpg.LockNotAvailableError):
        await sink.write_contested(event("frozen-0"))
    await transaction.rollback()
    assert await sink.write_contested(event("frozen-0")) == WRITTEN
    assert await stored(connection) == {*"abcdez", "frozen-0"}
    await sink.close()


async def test_contested_events_do_not_wait_for_each_other(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contested events that are free do not wait behind each event that a frozen writer holds."""
    monkeypatch.setattr("sinks.timescale.sink.SHORT_WAITS_S", PATIENCE_S)
    monkeypatch.setattr("sinks.timescale.sink.CONTESTED_LOCK_TIMEOUT_S", 2.0)
    sink = TimescaleSink(database_url, commit_timeout_s=PATIENCE_S)
    await sink.write_contested(event("z"))  # the chunk is there
    frozen = [f"frozen-{number}" for number in range(40)]
    transaction = connection.transaction()
    await transaction.start()
    for known in events(*frozen):
        await insert(connection, known)
    started = time.monotonic()
    for number, name in enumerate(frozen):
        with pytest.raises(asyncpg.LockNotAvailableError):
            await sink.write_contested(event(name))
        assert await sink.write_contested(event(f"free-{number}")) == WRITTEN
    assert time.monotonic() - started < 2.0 * len(frozen)
    await transaction.rollback()
    await sink.close()


async def test_contested_event_gets_its_full_time_again(
    sink: TimescaleSink, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Soon after the last wait in vain, a contested event has its full time-out again."""
    monkeypatch.setattr("sinks.timescale.sink.SHORT_WAITS_S", 0.05)
    await sink.write_contested(event("z"))
    for _ in range(2):
        transaction = connection.transaction()
        await transaction.start()
        await insert(connection, event("a"))
        started = time.monotonic()
        with pytest.raises(asyncpg.LockNotAvailableError):
            await sink.write_contested(event("a"))
        assert time.monotonic() - started > 0.4
        await transaction.rollback()
        await asyncio.sleep(0.1)


async def test_rebuilt_database_is_noticed(sink: TimescaleSink, connection: Connection) -> None:
    """Data that is replaced under an open connection has another name within seconds."""
    await sink.write(events("a"))
    before = sink.generation
    tables = await connection.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    for (table,) in tables:
        await connection.execute(f"DROP TABLE {table} CASCADE")
    await connection.execute("DROP FUNCTION decimal_or_null")
    await migrate(connection)
    async with asyncio.timeout(PATIENCE_S):
        while sink.generation == before or sink.generation is None:
            await asyncio.sleep(0.02)
    assert await sink.write(events("a")) == [WRITTEN]


async def test_commits_are_durable(services: Services, database_url: str) -> None:
    """A role or database that turns synchronous_commit off does not weaken the answer."""
    database = urlsplit(database_url).path.strip("/")
    await services.execute(None, f"ALTER DATABASE {database} SET synchronous_commit = off")
    sink = TimescaleSink(database_url, commit_timeout_s=5)
    for connection in (sink._batches, sink._contested):
        async with connection as session:
            assert await session.fetchval("SHOW synchronous_commit") == "on"
    await sink.close()


async def test_lost_connection_is_replaced(sink: TimescaleSink, connection: Connection) -> None:
    """A backend that is terminated costs at most one batch, and the name of the data with it."""
    assert await sink.write(events("a")) == [WRITTEN]
    assert sink.generation == await generation_of(connection)
    await connection.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'flokit-gateway' AND datname = current_database()"
    )
    await until_lost(sink)
    assert await sink.write(events("b")) == [WRITTEN]
    assert await stored(connection) == {"a", "b"}


async def test_time_out_gives_the_connection_up(
    database_url: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that takes too long raises, its statement ends, and the next write succeeds."""

    async def open_patient(url: str, settings: Mapping[str, str], timeout_s: float) -> Session:
        """A session whose server never gives up."""
        never = {"statement_timeout": "0", "lock_timeout": "0"}
        return await open_session(url, {**settings, **never}, timeout_s)

    sink = TimescaleSink(database_url, commit_timeout_s=PATIENCE_S, open_session=open_patient)
    await sink.ping()
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
    with monkeypatch.context() as patch:
        patch.setattr(sink, "_commit_timeout_s", 0.3)
        with pytest.raises(TimeoutError):
            await sink.write(events("a"))
    async with asyncio.timeout(PATIENCE_S):
        while await connection.fetchval(IS_ANYBODY_WAITING):
            await asyncio.sleep(0.01)
    await transaction.rollback()
    assert await sink.write(events("a")) == [WRITTEN]
    await sink.close()


async def test_overlapping_writers_do_not_deadlock(
    database_url: str, connection: Connection
) -> None:
    """Four writers with the same events in many chunks, in any order: each row once, no error."""
    sinks = [TimescaleSink(database_url, commit_timeout_s=5) for _ in range(4)]
    days = [OCCURRED_AT + timedelta(days=day) for day in range(6)]
    batch = [event(f"{n}-{d}", occurred_at=at) for n in range(10) for d, at in enumerate(days)]
    orders = [batch, batch[::-1], batch[30:] + batch[:30], batch[::2]]

    async def write(sink: TimescaleSink, order: Sequence[Event]) -> int:
        outcomes = list(await sink.write(order))
        for place, known in enumerate(order):
            if outcomes[place] is CONTESTED:
                outcomes[place] = await sink.write_contested(known)
        return outcomes.count(WRITTEN)

    written = await asyncio.gather(*map(write, sinks, orders))
    assert sum(written) == len(batch) == len(await stored(connection))
    for sink in sinks:
        await sink.close()


@pytest.mark.parametrize("contested", [False, True])
async def test_deadlock_is_retried_once(
    sink: TimescaleSink, connection: Connection, contested: bool
) -> None:
    """The victim of a deadlock writes again at once; the victim of two in a row raises."""
    await write(sink, events("z"), contested=contested)  # the chunk is there
    await connection.execute(VICTIM.format(number=2))
    assert await write(sink, events("a"), contested=contested) == [WRITTEN]
    await connection.execute(VICTIM.format(number=3))
    with pytest.raises(asyncpg.DeadlockDetectedError):
        await write(sink, events("b"), contested=contested)
    assert await write(sink, events("b"), contested=contested) == [WRITTEN]
    assert await stored(connection) == {"a", "b", "z"}


async def test_copy_of_a_database_is_other_data(
    services: Services, template: str, connection: Connection
) -> None:
    """A copied database does not inherit Redis's records of the original."""
    name = "gateway_copy"
    await services.execute(None, f"CREATE DATABASE {name} TEMPLATE {template}")
    copy = await asyncpg.connect(services.url_of(name))
    assert await generation_of(copy) != await generation_of(connection)
    await copy.close()
    await services.execute(None, f"DROP DATABASE {name} WITH (FORCE)")


async def insert(connection: Connection, known: Event) -> None:
    """Enter an event by hand."""
    await connection.execute(
        "INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token, "
        "event_type, user_id, properties) VALUES ($1, $2, $3, 'ws_test', 'adjust', 'abc123token', "
        "'purchase', $4, '{}')",
        known.event_id.hex(),
        known.occurred_at,
        known.received_at,
        known.user_id,
    )


async def until_waiting(connection: Connection) -> None:
    """Return when a process waits for a lock."""
    while not await connection.fetchval(IS_ANYBODY_WAITING):
        await asyncio.sleep(0.01)
