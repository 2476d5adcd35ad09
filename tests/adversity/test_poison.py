"""Poison: an event that the database refuses costs no neighbour its row, and little else."""

from collections.abc import Sequence
from typing import Any

import asyncpg
import pytest

from app.event import Event, Outcome
from sinks.timescale import statements, writes
from sinks.timescale.session import Session
from sinks.timescale.sink import TimescaleSink
from tests.events import event, events, stored

WRITTEN, DUPLICATE = Outcome.WRITTEN, Outcome.DUPLICATE
REFUSED, CONTESTED = Outcome.REFUSED, Outcome.CONTESTED
NO_XX = "ALTER TABLE events ADD CONSTRAINT c CHECK (country <> 'XX')"

POISON = {
    "nul in jsonb": event("poison", properties={"a": "nul \x00"}),
    "nul in text": event("poison", user_id="nul \x00"),
    "no encoding": event("poison", user_id="surrogate \ud800"),
    "no encoding in jsonb": event("poison", properties={"a": "surrogate \ud800"}),
    "check": event("poison", country="XX"),
    "check on stable": event("poison", has_stable_id=True, country="XX"),
}


@pytest.mark.parametrize("poison", POISON.values(), ids=POISON)
async def test_poison_costs_no_neighbour(
    sink: TimescaleSink, connection: asyncpg.Connection, poison: Event
) -> None:
    """The database refuses one event for its data: only that one is, when it is written alone."""
    await connection.execute(NO_XX)
    batch = events(*"abcdefg")
    batch.insert(3, poison)
    outcomes = await sink.write(batch)
    assert outcomes == [CONTESTED if e is poison else WRITTEN for e in batch]
    assert await sink.write_contested(poison) == REFUSED
    assert await stored(connection) == set("abcdefg")
    assert await connection.fetchval("SELECT count(*) FROM stable_events") == 0


async def test_event_without_an_encoding_harms_no_neighbour(
    sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """An event that cannot be sent leaves no transaction open in which its neighbours are lost."""
    batch = [*events("a", "b", has_stable_id=True), POISON["no encoding"]]
    assert await sink.write(batch) == [WRITTEN, WRITTEN, CONTESTED]
    assert await stored(connection) == {"a", "b"}


class Attempts:
    """Counts the attempts to write, by the function that makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[tuple[str, int]] = []
        for name in ("copy_events", "insert_events"):
            monkeypatch.setattr(writes, name, self._counting(name, getattr(writes, name)))

    def _counting(self, name: str, attempt: writes.Attempt) -> writes.Attempt:
        async def count(connection: Any, batch: Sequence[Event]) -> dict[bytes, Outcome]:
            self.sizes.append((name, len(batch)))
            return await attempt(connection, batch)

        return count


@pytest.mark.parametrize("poisoned", [1, 3])
@pytest.mark.parametrize("has_stable_id", [False, True])
async def test_poison_costs_one_more_copy(
    sink: TimescaleSink,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    poisoned: int,
    has_stable_id: bool,
) -> None:
    """The server names the row that it refuses: each costs one more COPY and a few INSERTs."""
    await connection.execute(NO_XX)
    attempts = Attempts(monkeypatch)
    good = events(*(f"good {number}" for number in range(200)), has_stable_id=has_stable_id)
    poison = events(*(f"bad {number}" for number in range(poisoned)), country="XX")
    outcomes = await sink.write([*good, *poison])
    assert outcomes == [WRITTEN] * len(good) + [CONTESTED] * poisoned
    assert attempts.sizes == [("copy_events", len(good) + left) for left in range(poisoned, -1, -1)]
    attempts.sizes.clear()
    assert await sink.write_contested(poison[0]) == REFUSED
    assert len(attempts.sizes) == 3


async def test_poison_beyond_a_few_is_found_by_halving(
    sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """However many are refused, and in any place, the others are written."""
    await connection.execute(NO_XX)
    batch = events(*(f"event {number}" for number in range(60)))
    batch[::4] = events(*(f"bad {number}" for number in range(15)), country="XX")
    outcomes = await sink.write(batch)
    assert outcomes == [CONTESTED if e.country == "XX" else WRITTEN for e in batch]
    assert len(await stored(connection)) == 45


async def test_poison_beside_a_duplicate_is_refused_alone(
    sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """A batch that is refused for two reasons is resolved row by row."""
    await connection.execute(NO_XX)
    known = events("a", "b", has_stable_id=True)
    assert await sink.write(known) == [WRITTEN, WRITTEN]
    batch = [*known, event("poison", country="XX"), *events("c", "d")]
    outcomes = await sink.write(batch)
    assert outcomes == [DUPLICATE, DUPLICATE, CONTESTED, WRITTEN, WRITTEN]
    assert await stored(connection) == set("abcd")


@pytest.mark.parametrize("has_stable_id", [False, True])
async def test_event_is_not_refused_for_a_fault_of_the_schema(
    sink: TimescaleSink,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    has_stable_id: bool,
) -> None:
    """An event that the schema's fault refused is not dropped because a later one is taken."""
    await connection.execute("ALTER TABLE events ADD CONSTRAINT c CHECK (false)")
    insert = statements.insert_events

    async def insert_and_mend(on: Session, batch: Sequence[Event]) -> Any:
        try:
            return await insert(on, batch)
        except asyncpg.CheckViolationError:
            await connection.execute("ALTER TABLE events DROP CONSTRAINT c")
            raise

    monkeypatch.setattr(writes, "insert_events", insert_and_mend)
    refused = event("a", has_stable_id=has_stable_id)
    assert await sink.write_contested(refused) == WRITTEN
    assert await stored(connection) == {"a"}
