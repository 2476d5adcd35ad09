"""The oracle finds each broken promise, and nothing else."""

import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any

import asyncpg
import msgspec
import pytest

from bench.faults.oracle import judge
from bench.faults.verdict import Verdict
from bench.testbed.deliveries import EventGenerator, EventKind, SimulatedEvent
from bench.testbed.ledger import AnswerKind, Ledger

GENERATOR = EventGenerator(seed=1)
EVENTS = 200


def first_event(kind: EventKind) -> SimulatedEvent:
    """Return the first event of this kind."""
    events: Iterator[SimulatedEvent] = map(GENERATOR.event, count())
    return next(event for event in events if event.kind is kind)


PLAIN, UNMAPPED, STABLE = map(first_event, (EventKind.PLAIN, EventKind.UNMAPPED, EventKind.STABLE))


async def store(connection: asyncpg.Connection, kept: SimulatedEvent, **changes: Any) -> None:
    """Insert the row of an event, with changes."""
    row = kept.row
    assert row is not None
    columns: dict[str, Any] = {
        "user_id": f"u{kept.number}",
        "workspace_id": row.workspace_id,
        "vendor": "adjust",
        "app_token": row.app_token,
        "event_type": row.event_type,
        "occurred_at": max(row.occurred_at),
        "received_at": max(row.occurred_at),
        "os_name": row.os_name,
        "country": row.country,
        "adid": row.adid,
        "properties": msgspec.json.encode(row.properties).decode(),
    } | changes
    places = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
    await connection.execute(
        f"INSERT INTO events (event_id, {', '.join(columns)}) VALUES (gen_random_uuid(), {places})",
        *columns.values(),
    )


async def found(
    connection: asyncpg.Connection, sent: SimulatedEvent, *answers: AnswerKind
) -> Verdict:
    """Return the verdict after these answers to an event, a moment ago."""
    ledger = Ledger()
    for answer in answers:
        ledger.note(sent.number, answer, time.time())
    return await judge(connection, GENERATOR, ledger, EVENTS)


async def test_one_row_for_each_event_is_clean(connection: asyncpg.Connection) -> None:
    """One row for each event is clean, after any answers on the way."""
    await store(connection, PLAIN)
    await store(connection, STABLE)
    ways = (
        AnswerKind.ERROR,
        AnswerKind.UNAVAILABLE,
        AnswerKind.CLOSED,
        AnswerKind.WRITTEN,
        AnswerKind.DUPLICATE,
    )
    assert (await found(connection, PLAIN, *ways)).is_clean
    assert (await found(connection, STABLE, AnswerKind.DUPLICATE)).is_clean
    assert (
        await found(connection, UNMAPPED, AnswerKind.ERROR, AnswerKind.DROPPED, AnswerKind.DROPPED)
    ).is_clean
    # A row without a final answer is right: the answer was lost on the way.
    assert (await found(connection, PLAIN, AnswerKind.TIMED_OUT)).is_clean


@pytest.mark.parametrize("answer", [AnswerKind.WRITTEN, AnswerKind.DUPLICATE])
async def test_missing_row_is_lost(connection: asyncpg.Connection, answer: AnswerKind) -> None:
    """Answered written or duplicate, without a row: lost."""
    verdict = await found(connection, PLAIN, AnswerKind.ERROR, answer)
    assert list(verdict.lost) == [PLAIN.number]
    assert not verdict.is_clean


@pytest.mark.parametrize(
    "changes",
    [
        {"properties": "{}"},
        {"country": "XX"},
        {"workspace_id": "ws_other"},
        {"event_type": "refund"},
        {"adid": None},
        {"occurred_at": timedelta(microseconds=1)},
    ],
)
async def test_other_content_is_lost(
    connection: asyncpg.Connection, changes: dict[str, Any]
) -> None:
    """Answered written, with another row: lost."""
    assert PLAIN.row is not None
    if "occurred_at" in changes:
        changes = {"occurred_at": max(PLAIN.row.occurred_at) + changes["occurred_at"]}
    await store(connection, PLAIN, **changes)
    assert list((await found(connection, PLAIN, AnswerKind.WRITTEN)).lost) == [PLAIN.number]


async def test_second_row_is_doubled(connection: asyncpg.Connection) -> None:
    """Two rows of one event are doubled, even without a final answer."""
    assert STABLE.row is not None
    for occurred_at in STABLE.row.occurred_at:
        await store(connection, STABLE, occurred_at=occurred_at)
    verdict = await found(connection, STABLE, AnswerKind.ERROR)
    assert (list(verdict.doubled), verdict.rows) == ([STABLE.number], 2)


async def test_row_of_no_callback_is_doubled(connection: asyncpg.Connection) -> None:
    """A row of no callback is one too many."""
    await store(connection, PLAIN, user_id="somebody else")
    assert (await found(connection, PLAIN)).doubled


@pytest.mark.parametrize(
    ("event", "answers"),
    [
        (PLAIN, [AnswerKind.WRITTEN, AnswerKind.WRITTEN]),
        (PLAIN, [AnswerKind.DROPPED]),
        (PLAIN, [AnswerKind.REFUSED]),
        (PLAIN, [AnswerKind.OTHER_2XX]),
        (PLAIN, [AnswerKind.OTHER_5XX]),
        (UNMAPPED, [AnswerKind.REFUSED]),
    ],
)
async def test_false_answer_is_lied(
    connection: asyncpg.Connection, event: SimulatedEvent, answers: list[AnswerKind]
) -> None:
    """Written twice, a good callback dropped or refused, an answer outside the contract: lied."""
    await store(connection, PLAIN)
    assert list((await found(connection, event, *answers)).lied) == [event.number]


async def test_row_of_a_dropped_callback_is_lied(connection: asyncpg.Connection) -> None:
    """A dropped callback with a row: lied."""
    await store(connection, PLAIN, user_id=f"u{UNMAPPED.number}")
    assert list((await found(connection, UNMAPPED, AnswerKind.DROPPED)).lied) == [UNMAPPED.number]


@pytest.mark.parametrize("answer", [AnswerKind.WRITTEN, AnswerKind.DUPLICATE])
async def test_answer_before_the_commit_is_lied(
    connection: asyncpg.Connection, answer: AnswerKind
) -> None:
    """An answer before the commit of its row: lied, even if the commit follows."""
    ledger = Ledger()
    ledger.note(PLAIN.number, answer, time.time())
    await store(connection, PLAIN)
    verdict = await judge(connection, GENERATOR, ledger, EVENTS)
    assert list(verdict.lied) == [PLAIN.number]
    assert not verdict.lost
