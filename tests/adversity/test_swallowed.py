"""Rows that the server accepts and does not keep: neither `written` nor `duplicate` is answered."""

from datetime import timedelta

import asyncpg
import pytest

from app.event import Outcome
from sinks.timescale.search import find_rows
from sinks.timescale.sink import TimescaleSink
from tests.events import OCCURRED_AT, event, events, stored, write_all
from tests.gateways import Services
from tests.services.test_timescale import skip_without_timescaledb

WRITTEN, DUPLICATE, CONTESTED = Outcome.WRITTEN, Outcome.DUPLICATE, Outcome.CONTESTED
Connection = asyncpg.Connection


async def swallow(connection: Connection, table: str, condition: str) -> None:
    """Let a trigger leave out the rows that fulfil a condition."""
    await connection.execute(
        f"CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF {condition} "
        "THEN RETURN NULL; END IF; RETURN NEW; END $$; CREATE TRIGGER swallow "
        f"BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION swallow()"
    )


async def stop_swallowing(connection: Connection) -> None:
    """Take the trigger away."""
    await connection.execute("DROP FUNCTION swallow CASCADE")


@pytest.mark.parametrize("has_stable_id", [False, True])
async def test_swallowed_row_is_no_duplicate(
    sink: TimescaleSink, connection: Connection, has_stable_id: bool
) -> None:
    """A trigger leaves one row out: that one raises alone, its neighbours are written."""
    await swallow(connection, "events", "NEW.user_id = 'c'")
    await sink.write(events("a"))
    batch = events("b", "c", "d", has_stable_id=has_stable_id)
    assert await sink.write(batch) == [WRITTEN, CONTESTED, WRITTEN]
    assert await sink.write([event("c", has_stable_id=has_stable_id), *events("a", "e")]) == [
        CONTESTED,
        DUPLICATE,
        WRITTEN,
    ]
    with pytest.raises(asyncpg.PostgresError):
        await sink.write_contested(batch[1])
    assert await stored(connection) == set("abde")
    await stop_swallowing(connection)
    assert await sink.write(batch[1:2]) == [WRITTEN]


async def test_swallowed_duplicate_is_not_written_again(
    sink: TimescaleSink, connection: Connection
) -> None:
    """A trigger leaves out an event that is there: it is a duplicate, and not `written` twice."""
    assert await sink.write(events("a")) == [WRITTEN]
    await swallow(connection, "events", "NEW.user_id = 'a'")
    assert await sink.write(events("a")) == [DUPLICATE]
    assert await stored(connection) == set("a")


@pytest.mark.parametrize("later_s", [0, 1])
async def test_neighbour_of_a_swallowed_duplicate_is_written_once(
    sink: TimescaleSink, connection: Connection, later_s: int
) -> None:
    """A trigger leaves out an event that is there, and takes the one beside it.

    The arrival of a row is that of the delivery that wrote it. Where two deliveries have the same
    one, nothing is `written`, rather than one event twice.
    """
    assert await sink.write(events("a")) == [WRITTEN]
    await swallow(connection, "events", "NEW.user_id = 'a'")
    again = event("a")
    again = event("a", received_at=again.received_at + timedelta(seconds=later_s))
    batch = [*events("b"), again, *events("c")]
    new = WRITTEN if later_s else DUPLICATE
    assert await sink.write(batch) == [new, DUPLICATE, new]
    assert await stored(connection) == set("abc")
    assert await sink.write(batch) == [DUPLICATE] * 3


async def test_swallowed_stable_id_is_no_duplicate(
    sink: TimescaleSink, connection: Connection
) -> None:
    """A trigger leaves a stable ID out: its event is neither written without it nor a duplicate."""
    poison = event("c", has_stable_id=True)
    await swallow(connection, "stable_events", f"NEW.event_id = '{poison.event_id.hex()}'")
    batch = [*events("a", "b", has_stable_id=True), poison, event("d")]
    outcomes = await sink.write(batch)
    assert outcomes == [WRITTEN, WRITTEN, CONTESTED, WRITTEN]
    with pytest.raises(asyncpg.PostgresError):
        await sink.write_contested(poison)
    assert await stored(connection) == set("abd")


@pytest.mark.parametrize("has_stable_id", [False, True])
async def test_foreign_index_refuses_only_its_own(
    sink: TimescaleSink, connection: Connection, has_stable_id: bool
) -> None:
    """An event that a foreign unique index refuses raises alone, and is no duplicate."""
    await connection.execute("CREATE UNIQUE INDEX foreign_index ON events (user_id, occurred_at)")
    known = event("a")
    other = event(
        "another", user_id="a", occurred_at=known.occurred_at, has_stable_id=has_stable_id
    )
    assert await sink.write([known]) == [WRITTEN]
    batch = [event("b"), other, known, event("c", has_stable_id=has_stable_id)]
    outcomes = await sink.write(batch)
    assert outcomes == [WRITTEN, CONTESTED, DUPLICATE, WRITTEN]
    with pytest.raises(asyncpg.UniqueViolationError):
        await sink.write_contested(other)
    await connection.execute("DROP INDEX foreign_index")
    assert await sink.write_contested(other) == WRITTEN


async def test_duplicates_of_many_days_are_found(
    sink: TimescaleSink, connection: Connection
) -> None:
    """Duplicates may lie years apart: every one is found in its own chunk."""
    days = [
        event(str(day), occurred_at=OCCURRED_AT - timedelta(days=day)) for day in (0, 1, 90, 5000)
    ]
    assert await write_all(sink, days) == [WRITTEN] * 4
    # A look-up of the chunks that began before one of them was made sets its event apart once more.
    assert await write_all(sink, [*days, event("new")]) == [DUPLICATE] * 4 + [WRITTEN]
    assert len(await stored(connection)) == 5


async def test_search_locks_one_chunk(
    services: Services, sink: TimescaleSink, connection: Connection
) -> None:
    """For any number of chunks and of searches, a search locks its own chunk only.

    The server has room for the locks of some 3,000 chunks.
    """
    await skip_without_timescaledb(services, connection)
    days = [event(str(day), occurred_at=OCCURRED_AT - timedelta(days=day)) for day in range(40)]
    await write_all(sink, days)
    async with sink._batches as session:
        for _ in range(12):  # from the sixth time on, the server weighs a plan for any time
            async with session.transaction():
                found = await find_rows(session, days[7:8])
                assert found == {days[7].event_id: days[7].received_at}
                locked = await session.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() "
                    "AND relation::regclass::text LIKE '%\\_hyper\\_%\\_chunk'"
                )
                assert locked == 1
