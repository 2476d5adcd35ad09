"""Events of wrong or late days: they make chunks of their own, and other events do not wait."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from app.event import Outcome
from app.telemetry.metrics import CHUNKS
from sinks.timescale.chunks import Chunks
from sinks.timescale.sink import TimescaleSink
from sinks.timescale.writes import write_batch
from tests.events import OCCURRED_AT, event, events, stored
from tests.gateways import Gateways

OLD = OCCURRED_AT - timedelta(days=900)
WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}


@pytest.fixture
async def sink(sink: TimescaleSink, connection: asyncpg.Connection) -> TimescaleSink:
    """The sink, once it knows the chunks."""
    if not await connection.fetchval("SELECT to_regclass('_timescaledb_catalog.chunk')"):
        pytest.skip("a plain table has no chunks")
    await sink.write_contested(event("first"))  # its chunk is known from now on
    async with sink._contested as session:
        await sink._chunks.look_up(session)
    return sink


async def chunks(connection: asyncpg.Connection) -> int:
    """The number of chunks."""
    return int(await connection.fetchval("SELECT count(*) FROM show_chunks('events')"))


async def test_event_without_a_chunk_is_written_apart(
    sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """Its neighbours are written at once, and no chunk is made for it in their transaction."""
    before = await chunks(connection)
    batch = [*events("a", "b"), event("old", occurred_at=OLD)]
    assert await sink.write(batch) == [
        Outcome.WRITTEN, Outcome.WRITTEN, Outcome.CONTESTED,
    ]  # fmt: skip
    assert await chunks(connection) == before
    assert await sink.write_contested(batch[2]) == Outcome.WRITTEN
    assert await chunks(connection) == before + 1
    assert await stored(connection) == {"first", "a", "b", "old"}


async def test_new_chunk_is_known(sink: TimescaleSink, connection: asyncpg.Connection) -> None:
    """From the second event of an old day on, its events are written with all others."""
    await sink.write_contested(event("old", occurred_at=OLD))
    later = event("older", occurred_at=OLD + timedelta(hours=1))
    assert await sink.write([later]) == [Outcome.WRITTEN]
    day_before = event("oldest", occurred_at=OLD - timedelta(days=1))
    assert await sink.write([day_before]) == [Outcome.CONTESTED]
    assert CHUNKS._value.get() == await chunks(connection)


async def test_duplicate_of_an_old_day_is_a_duplicate(
    sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """An event that is stored is a duplicate, whether its chunk is known or not."""
    old = event("old", occurred_at=OLD, has_stable_id=True)
    assert await sink.write_contested(old) == Outcome.WRITTEN
    again = event("old", occurred_at=OLD - timedelta(days=99), has_stable_id=True)
    assert await sink.write([again]) == [Outcome.CONTESTED]
    assert await sink.write_contested(again) == Outcome.DUPLICATE
    assert await stored(connection) == {"first", "old"}


async def test_wrong_date_is_written_with_one_answer(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """Over HTTP an old event is written like any other, and its repeat is a duplicate."""
    gateway = await gateways.start()
    days = [str(1_300_000_000 + 86_400 * number) for number in range(3)]
    for receipt in (WRITTEN, WRITTEN | {"written": 0, "duplicate": 1}):
        answers = [(await gateway.callback(created_at=day, user_id=day)).json for day in days]
        assert answers == [receipt] * len(days)
    assert await stored(connection) == set(days)


async def test_unreadable_chunks_fail_no_write(
    sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """Written events are reported so, and from the next look-up on every time counts as known."""
    await connection.execute("ALTER VIEW timescaledb_information.chunks RENAME TO away")
    old = event("old", occurred_at=OLD)
    assert await sink.write([old]) == [Outcome.CONTESTED]
    assert await sink.write_contested(old) == Outcome.WRITTEN
    async with sink._contested as session:
        with pytest.raises(asyncpg.PostgresError):
            await sink._chunks.look_up(session)
    assert CHUNKS._value.get() == 0
    older = [event("older", occurred_at=OLD - timedelta(days=1))]
    assert await sink.write(older) == [Outcome.WRITTEN]
    assert await stored(connection) == {"first", "old", "older"}


async def test_table_that_goes_during_the_look_up_has_every_chunk(
    sink: TimescaleSink, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No event counts as one without a chunk for a table that was renamed meanwhile."""

    async def is_hypertable(_: asyncpg.Connection, _table: str) -> bool:
        await connection.execute("ALTER TABLE events RENAME TO elsewhere")
        return True

    monkeypatch.setattr("sinks.timescale.chunks.is_hypertable", is_hypertable)
    async with sink._contested as session:
        await sink._chunks.look_up(session)
    assert sink._chunks.has(event("a"))


async def test_hypertable_without_chunks_has_none(
    sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """The first event of a new table is written apart, since its chunk is to be made."""
    await connection.execute("SELECT drop_chunks('events', newer_than => '-infinity'::timestamptz)")
    async with sink._contested as session:
        await sink._chunks.look_up(session)
    assert not sink._chunks.has(event("a"))
    assert CHUNKS._value.get() == 0


async def test_chunks_are_looked_up_where_none_can_be_made(
    sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """A role that may not delete makes no chunk ahead of time; it finds the existing ones."""
    await connection.execute(
        "SELECT drop_chunks('events', newer_than => now()); "
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE insufficient_privilege; END$$; "
        "CREATE TRIGGER refuse BEFORE DELETE ON events FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    old = event("old", occurred_at=OLD)
    async with sink._contested as session:
        await write_batch(session, [old], Chunks())
    assert not sink._chunks.has(old)
    tending = asyncio.create_task(sink._keep_chunks())
    async with asyncio.timeout(20):
        while not sink._chunks.has(old):
            await asyncio.sleep(0.01)
    tending.cancel()
