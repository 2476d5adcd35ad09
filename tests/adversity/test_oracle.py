"""The oracle finds each broken promise, and nothing else."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import uuid4

import asyncpg
import msgspec
import pytest

from bench.faults.oracle import judge
from bench.faults.verdict import Verdict
from bench.testbed.chronicle import Chronicle, Cut, Disturbance
from bench.testbed.deliveries import EventGenerator, EventKind, SimulatedEvent
from bench.testbed.ledger import AnswerKind, Ledger
from bench.testbed.rows import NUMBER

GENERATOR = EventGenerator(seed=1)
EVENTS = 200
STARTED_AT = time.time()
COLUMNS = (
    "workspace_id", "vendor", "app_token", "event_type", "user_id", "adid", "gps_adid", "idfa",
    "os_name", "country",
)  # fmt: skip


def first_event(kind: EventKind) -> SimulatedEvent:
    """Return the first event of this kind, with a device if it has a row."""
    events: Iterator[SimulatedEvent] = map(GENERATOR.event, count())
    return next(
        event for event in events if event.kind is kind and (event.row is None or event.row.adid)
    )


PLAIN, UNMAPPED, STABLE, OTHER, IGNORED = map(
    first_event,
    (
        EventKind.PLAIN,
        EventKind.UNMAPPED,
        EventKind.STABLE,
        EventKind.HUNG_UP,
        EventKind.IGNORED,
    ),
)


async def store(connection: asyncpg.Connection, kept: SimulatedEvent, **changes: Any) -> None:
    """Insert the row of an event that arrives now, with changes."""
    row = kept.row
    assert row is not None
    version = row.versions[0]
    columns: dict[str, Any] = {
        "event_id": row.event_id,
        "occurred_at": version.occurred_at,
        "received_at": datetime.now(UTC),
        "properties": msgspec.json.encode(version.properties).decode(),
        **{name: getattr(row, name) for name in COLUMNS},
    } | changes
    entered_at = columns.pop("entered_at", columns["occurred_at"] if row.has_stable_id else None)
    places = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
    async with connection.transaction():
        await connection.execute(
            f"INSERT INTO events ({', '.join(columns)}) VALUES ({places})", *columns.values()
        )
        if entered_at is not None:
            await connection.execute(
                "INSERT INTO stable_events VALUES ($1, $2)", columns["event_id"], entered_at
            )


async def found(
    connection: asyncpg.Connection,
    sent: SimulatedEvent,
    *answers: AnswerKind,
    sent_at: float = STARTED_AT,
) -> Verdict:
    """Return the verdict on attempts that were all sent at once, and are answered now."""
    ledger = Ledger()
    for answer in answers:
        ledger.note(sent.number, answer, sent_at, time.time())
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
    assert (await found(connection, STABLE, AnswerKind.ERROR, AnswerKind.DUPLICATE)).is_clean
    assert (
        await found(connection, UNMAPPED, AnswerKind.ERROR, AnswerKind.DROPPED, AnswerKind.DROPPED)
    ).is_clean
    # A row without a final answer is right: the answer was lost on the way.
    for lost in (AnswerKind.TIMED_OUT, AnswerKind.CLOSED, AnswerKind.HUNG_UP, AnswerKind.ERROR):
        assert (await found(connection, PLAIN, lost)).is_clean
        assert (await found(connection, PLAIN, lost, AnswerKind.DUPLICATE)).is_clean


@pytest.mark.parametrize("answer", [AnswerKind.WRITTEN, AnswerKind.DUPLICATE])
async def test_missing_row_is_lost(connection: asyncpg.Connection, answer: AnswerKind) -> None:
    """Answered written or duplicate, without a row: lost."""
    verdict = await found(connection, PLAIN, AnswerKind.ERROR, answer)
    assert list(verdict.lost) == [PLAIN.number]
    assert not verdict.is_clean


@pytest.mark.parametrize(
    "changes",
    [
        {"event_id": uuid4()},
        {"properties": "{}"},
        {"country": "XX"},
        {"workspace_id": "ws_other"},
        {"event_type": "refund"},
        {"user_id": "somebody else"},
        {"adid": None},
        {"gps_adid": "a device"},
        {"idfa": "a device"},
        {"os_name": None},
        {"vendor": "branch"},
        {"app_token": "another"},
        {"occurred_at": datetime(2024, 1, 1, tzinfo=UTC)},
        {"received_at": datetime.fromtimestamp(STARTED_AT, UTC) - timedelta(seconds=1)},
        {"received_at": datetime.now(UTC) + timedelta(days=1)},
        {"entered_at": datetime(2024, 1, 1, tzinfo=UTC)},
    ],
)
async def test_other_content_is_lost(
    connection: asyncpg.Connection, changes: dict[str, Any]
) -> None:
    """Answered written, with another row: lost."""
    for answers in ([AnswerKind.WRITTEN], [AnswerKind.ERROR, AnswerKind.DUPLICATE]):
        await store(connection, PLAIN, **changes)
        verdict = await found(connection, PLAIN, *answers)
        assert PLAIN.number in verdict.lost
        await connection.execute("DELETE FROM events; DELETE FROM stable_events")


async def test_second_row_is_doubled(connection: asyncpg.Connection) -> None:
    """Two rows of one event are doubled, even without a final answer."""
    assert STABLE.row is not None
    for occurred_at, properties in STABLE.row.versions:
        text = msgspec.json.encode(properties).decode()
        changes = {"occurred_at": occurred_at, "properties": text}
        await store(connection, STABLE, event_id=uuid4(), **changes)
    verdict = await found(connection, STABLE, AnswerKind.ERROR)
    assert (list(verdict.doubled), verdict.rows) == ([STABLE.number], 2)


async def test_row_of_no_callback_is_doubled(connection: asyncpg.Connection) -> None:
    """A row of no callback is one too many."""
    await store(connection, PLAIN, properties="{}")
    assert (await found(connection, PLAIN)).doubled


async def test_event_id_of_two_rows_is_doubled(connection: asyncpg.Connection) -> None:
    """One event ID in the rows of two events: the next delivery of one may be a duplicate."""
    event_id = uuid4()
    await store(connection, PLAIN, event_id=event_id)
    await store(connection, OTHER, event_id=event_id, occurred_at=datetime(2024, 1, 2, tzinfo=UTC))
    assert list((await found(connection, PLAIN, AnswerKind.WRITTEN)).doubled) == [-3]


async def test_stable_id_without_a_row_is_lost(connection: asyncpg.Connection) -> None:
    """The entry of a stable ID without its row: the retry would be a duplicate."""
    await connection.execute("INSERT INTO stable_events VALUES ($1, now())", uuid4())
    assert (await found(connection, PLAIN)).lost


@pytest.mark.parametrize(
    ("event", "answers"),
    [
        (PLAIN, [AnswerKind.WRITTEN, AnswerKind.WRITTEN]),
        (PLAIN, [AnswerKind.DUPLICATE]),
        (PLAIN, [AnswerKind.NO_CONNECTION, AnswerKind.DUPLICATE, AnswerKind.DUPLICATE]),
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
    """Written twice or never, a good callback dropped, an answer outside the contract: lied."""
    await store(connection, PLAIN)
    assert list((await found(connection, event, *answers)).lied) == [event.number]


async def test_row_of_a_dropped_callback_is_lied(connection: asyncpg.Connection) -> None:
    """A dropped callback with a row: lied."""
    await store(connection, PLAIN, properties=f'{{"{NUMBER}": "{UNMAPPED.number}"}}')
    assert list((await found(connection, UNMAPPED, AnswerKind.DROPPED)).lied) == [UNMAPPED.number]


@pytest.mark.parametrize("answer", [AnswerKind.WRITTEN, AnswerKind.DUPLICATE])
async def test_answer_before_the_commit_is_lied(
    connection: asyncpg.Connection, answer: AnswerKind
) -> None:
    """An answer before the commit of its row: lied, even if the commit follows."""
    ledger = Ledger()
    received_at = datetime.now(UTC)
    ledger.note(PLAIN.number, AnswerKind.ERROR, STARTED_AT, time.time())
    ledger.note(PLAIN.number, answer, STARTED_AT, time.time())
    await store(connection, PLAIN, received_at=received_at)
    verdict = await judge(connection, GENERATOR, ledger, EVENTS)
    assert list(verdict.lied) == [PLAIN.number]
    assert not verdict.lost


AT = STARTED_AT
LONG_AGO, TARGET, IN_WINDOW, BACK, AFTER = AT - 40, AT - 30, AT - 20, AT - 10, AT - 5
LATER = AT + 3_600  # than any commit of these tests


@pytest.mark.parametrize(
    ("answers", "has_row", "is_lost"),
    [
        # Before the target the restore has kept the row.
        ([(AnswerKind.WRITTEN, LONG_AGO)], False, True),
        ([(AnswerKind.WRITTEN, TARGET)], False, True),
        ([(AnswerKind.WRITTEN, LONG_AGO), (AnswerKind.ERROR, AFTER)], False, True),
        # In the window it may be gone, if the vendor sends the event again.
        ([(AnswerKind.WRITTEN, IN_WINDOW)], False, True),
        ([(AnswerKind.WRITTEN, IN_WINDOW), (AnswerKind.ERROR, AFTER)], False, True),
        ([(AnswerKind.WRITTEN, IN_WINDOW), (AnswerKind.WRITTEN, AFTER)], False, True),
        ([(AnswerKind.WRITTEN, IN_WINDOW), (AnswerKind.WRITTEN, LATER)], True, False),
        # After the restore it counts like any other.
        ([(AnswerKind.WRITTEN, AFTER)], False, True),
        ([(AnswerKind.DUPLICATE, AFTER)], False, True),
        ([(AnswerKind.ERROR, IN_WINDOW), (AnswerKind.ERROR, AFTER)], False, False),
    ],
)
async def test_missing_row_around_a_restore_is_lost(
    connection: asyncpg.Connection,
    answers: list[tuple[AnswerKind, float]],
    *,
    has_row: bool,
    is_lost: bool,
) -> None:
    """Only an event that is answered again after the restore may have lost its row by it."""
    ledger = Ledger()
    for answer, answered_at in answers:
        ledger.note(PLAIN.number, answer, LONG_AGO - 60, answered_at)
    if has_row:
        await store(connection, PLAIN)
    chronicle = Chronicle(cuts=[Cut(TARGET, BACK)])
    verdict = await judge(connection, GENERATOR, ledger, EVENTS, chronicle=chronicle)
    assert list(verdict.lost) == ([PLAIN.number] if is_lost else [])
    assert verdict.is_clean is not is_lost


def attempts(number: int, answer: AnswerKind, *, every_s: float = 1.0) -> Ledger:
    """A ledger of so many attempts that fail, and a thousand that do not."""
    ledger = Ledger()
    for place in range(number):
        ledger.note(PLAIN.number, answer, AT + place * every_s, AT + place * every_s + 0.01)
    for _ in range(1_000):
        ledger.note(OTHER.number, AnswerKind.HUNG_UP, AT, AT)
        ledger.note(IGNORED.number, AnswerKind.DROPPED, AT, AT)
    return ledger


@pytest.mark.parametrize(
    "answer",
    [
        AnswerKind.ERROR,
        AnswerKind.UNAVAILABLE,
        AnswerKind.NO_CONNECTION,
        AnswerKind.CLOSED,
        AnswerKind.TIMED_OUT,
    ],
)
async def test_failure_without_a_fault_is_failed(
    connection: asyncpg.Connection, answer: AnswerKind
) -> None:
    """A 5xx or no answer, and there was no fault: failed, though the retry may succeed."""
    chronicle = Chronicle(disturbances=[])
    ledger = attempts(20, answer)
    verdict = await judge(connection, GENERATOR, ledger, EVENTS, chronicle=chronicle)
    assert verdict.broken == {
        "lost": {}, "doubled": {}, "lied": {}, "leaked": {},
        "failed": {PLAIN.number: f"{answer.value}, without a fault"},
    }  # fmt: skip
    assert not verdict.is_clean
    assert (verdict.undisturbed, verdict.undisturbed_failed) == (1_020, 20)


@pytest.mark.parametrize(
    ("ledger", "disturbances"),
    [
        (attempts(20, AnswerKind.ERROR), None),
        (attempts(20, AnswerKind.ERROR), [Disturbance(AT - 1, AT + 30)]),
        (attempts(20, AnswerKind.HUNG_UP), []),
        (attempts(5, AnswerKind.ERROR), []),
        # A stall of the machine, at one moment.
        (attempts(200, AnswerKind.TIMED_OUT, every_s=0.001), []),
    ],
)
async def test_failure_by_a_fault_or_a_stall_is_clean(
    connection: asyncpg.Connection, ledger: Ledger, disturbances: list[Disturbance] | None
) -> None:
    """A fault, unknown faults, a caller that hung up, or a stall: nothing is failed."""
    chronicle = Chronicle(disturbances=disturbances)
    verdict = await judge(connection, GENERATOR, ledger, EVENTS, chronicle=chronicle)
    assert verdict.is_clean, verdict


async def test_share_of_failures_is_of_the_undisturbed_attempts(
    connection: asyncpg.Connection,
) -> None:
    """Of many attempts a few may fail; those during a fault make them no more."""
    ledger, number = attempts(20, AnswerKind.ERROR), 30_000
    for _ in range(number):
        ledger.note(IGNORED.number, AnswerKind.DROPPED, AT + 100, AT + 101)
    clean = Chronicle(disturbances=[])
    assert (await judge(connection, GENERATOR, ledger, EVENTS, chronicle=clean)).is_clean
    disturbed = Chronicle(disturbances=[Disturbance(AT + 99, AT + 102)])
    verdict = await judge(connection, GENERATOR, ledger, EVENTS, chronicle=disturbed)
    assert verdict.failed


async def test_row_from_before_a_restore_is_not_written_anew(
    connection: asyncpg.Connection,
) -> None:
    """A restore keeps the rows until its target: a second `written` of one is a lie."""
    await store(connection, PLAIN)
    ledger = Ledger()
    ledger.note(PLAIN.number, AnswerKind.WRITTEN, LONG_AGO - 1, TARGET)
    ledger.note(PLAIN.number, AnswerKind.WRITTEN, AT, LATER)
    chronicle = Chronicle(cuts=[Cut(TARGET, BACK)])
    verdict = await judge(connection, GENERATOR, ledger, EVENTS, chronicle=chronicle)
    assert list(verdict.lied) == [PLAIN.number]
