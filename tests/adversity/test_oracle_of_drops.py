"""The oracle finds each broken promise of quarantine, and nothing else."""

import re
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import msgspec
import pytest

from app.dropped import encode_event
from app.event import Event
from bench.faults import quarantine
from bench.faults.oracle import judge
from bench.faults.verdict import Verdict
from bench.testbed.chronicle import Chronicle, Cut
from bench.testbed.deliveries import EventGenerator, EventKind, SimulatedEvent
from bench.testbed.drops import numbered
from bench.testbed.ledger import AnswerKind, Ledger, Sending

GENERATOR = EventGenerator(seed=1)
EVENTS = 4_000
# Of the secret and its repetitions in front of it; the oracle has its own.
SECRETS = re.compile(rb"(?:secret|%73ecret|label)=[^&]*&")
NUMBER = 7
ROW_COLUMNS = (
    "workspace_id", "vendor", "app_token", "event_type", "user_id", "adid", "os_name", "country",
)  # fmt: skip
LEAK = "leaks-in-a-row"


def first_get(kind: EventKind) -> SimulatedEvent:
    """Return the first event of this kind that is sent as a GET."""
    events = map(GENERATOR.event, range(EVENTS))
    return next(
        event
        for event in events
        if event.kind is kind and event.deliveries[0].request.startswith(b"GET")
    )


UNKNOWN, IGNORED, POISON = map(
    first_get, (EventKind.UNKNOWN_APP, EventKind.IGNORED, EventKind.POISON)
)
MALFORMED = next(
    event for event in map(GENERATOR.event, range(EVENTS)) if event.kind is EventKind.MALFORMED
)
PLAIN = first_get(EventKind.PLAIN)


async def keep(
    connection: asyncpg.Connection, sent: SimulatedEvent = UNKNOWN, **changes: Any
) -> None:
    """Insert the row of a sending that has arrived now, with changes."""
    request = numbered(sent.deliveries[0].request, NUMBER)
    query = request.split(b" ", 2)[1].partition(b"?")[2]
    columns: dict[str, Any] = {
        "received_at": datetime.now(UTC),
        "vendor": "adjust",
        "workspace_id": "",
        "app_token": "n0such4pp",
        "reason": "unknown_app",
        "subject": "n0such4pp",
        "method": "GET",
        "query": SECRETS.sub(b"", query),
        "content_type": "",
        "body": b"",
        "event": None,
    } | changes
    places = ", ".join(f"${place}" for place in range(1, len(columns) + 1))
    await connection.execute(
        f"INSERT INTO dropped ({', '.join(columns)}) VALUES ({places})", *columns.values()
    )


async def found(
    connection: asyncpg.Connection,
    answer: AnswerKind,
    sent_at: float,
    sent: SimulatedEvent = UNKNOWN,
) -> Verdict:
    """Return the verdict on one sending, which is answered now."""
    ledger, now = Ledger(), time.time()
    ledger.note(sent.number, answer, sent_at, now)
    if sent.row is None:
        ledger.sendings[NUMBER] = Sending(sent.number, answer, sent_at, now)
    return await judge(connection, GENERATOR, ledger, EVENTS)


@pytest.mark.parametrize(
    "answer", [AnswerKind.DROPPED, AnswerKind.ERROR, AnswerKind.TIMED_OUT, AnswerKind.CLOSED]
)
async def test_one_row_for_each_sending_is_clean(
    connection: asyncpg.Connection, answer: AnswerKind
) -> None:
    """A row of a sending is right, whatever its answer was."""
    sent_at = time.time()
    await keep(connection)
    verdict = await found(connection, answer, sent_at)
    assert (verdict.is_clean, verdict.dropped_rows) == (True, 1)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (UNKNOWN, AnswerKind.ERROR),
        (UNKNOWN, AnswerKind.UNAVAILABLE),
        (UNKNOWN, AnswerKind.TIMED_OUT),
        (IGNORED, AnswerKind.DROPPED),
    ],
)
async def test_no_row_is_clean_without_its_answer(
    connection: asyncpg.Connection, sent: SimulatedEvent, answer: AnswerKind
) -> None:
    """A sending that failed needs no row, and an ignored one has none."""
    assert (await found(connection, answer, time.time(), sent)).is_clean


@pytest.mark.parametrize(
    ("sent", "answer"), [(UNKNOWN, AnswerKind.DROPPED), (MALFORMED, AnswerKind.MALFORMED)]
)
async def test_missing_row_of_a_drop_is_lost(
    connection: asyncpg.Connection, sent: SimulatedEvent, answer: AnswerKind
) -> None:
    """Answered dropped or malformed, without a row: lost."""
    verdict = await found(connection, answer, time.time(), sent)
    assert list(verdict.lost) == [sent.number]
    assert not verdict.is_clean


@pytest.mark.parametrize(
    "changes",
    [
        {"reason": "unmapped_event"},
        {"subject": ""},
        {"workspace_id": "ws_shop"},
        {"app_token": "other"},
        {"method": "POST"},
        {"query": b"sending=sending-0000000007"},
        {"content_type": "application/json"},
        {"body": b"x"},
        {"received_at": datetime.now(UTC) - timedelta(days=1)},
        {"received_at": datetime.now(UTC) + timedelta(days=1)},
    ],
)
async def test_other_content_of_a_drop_is_lost(
    connection: asyncpg.Connection, changes: dict[str, Any]
) -> None:
    """Answered dropped, with another row: lost."""
    sent_at = time.time()
    await keep(connection, **changes)
    verdict = await found(connection, AnswerKind.DROPPED, sent_at)
    assert list(verdict.lost) == [UNKNOWN.number]


@pytest.mark.parametrize("answer", [AnswerKind.DROPPED, AnswerKind.ERROR])
async def test_second_row_of_a_drop_is_doubled(
    connection: asyncpg.Connection, answer: AnswerKind
) -> None:
    """Two rows of one sending are doubled, even without a final answer."""
    sent_at = time.time()
    await keep(connection)
    await keep(connection)
    verdict = await found(connection, answer, sent_at)
    assert (list(verdict.doubled), verdict.dropped_rows) == ([UNKNOWN.number], 2)


async def test_second_row_behind_a_proxy_that_repeats_is_clean(
    connection: asyncpg.Connection,
) -> None:
    """A proxy may send a request again by itself: each delivery has its row."""
    ledger, sent_at = Ledger(), time.time()
    await keep(connection)
    await keep(connection)
    ledger.sendings[NUMBER] = Sending(UNKNOWN.number, AnswerKind.DROPPED, sent_at, time.time())
    for is_repeated in (False, True):
        verdict = await judge(connection, GENERATOR, ledger, EVENTS, is_repeated=is_repeated)
        assert verdict.is_clean is is_repeated, verdict


def refused_event(**changes: Any) -> Event:
    """The event in quarantine that the database has refused, with changes."""
    row = POISON.refused
    assert row is not None
    columns = {
        "event_id": row.event_id.bytes,
        "occurred_at": row.versions[0].occurred_at,
        "properties": {**row.versions[0].properties, "sending": "sending-0000000007"},
        "has_stable_id": row.has_stable_id,
        **{name: getattr(row, name) for name in ROW_COLUMNS},
    }
    return Event(**columns | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"event_id": bytes(16)},
        {"user_id": "other"},
        {"adid": None},
        {"country": "XX"},
        {"occurred_at": datetime(2024, 1, 1, tzinfo=UTC)},
        {"received_at": datetime(2024, 1, 1, tzinfo=UTC)},
        {"properties": {"sending": "sending-0000000007"}},
        {"has_stable_id": POISON.refused is not None and not POISON.refused.has_stable_id},
    ],
)
async def test_other_content_of_a_refused_event_is_lost(
    connection: asyncpg.Connection, changes: dict[str, Any]
) -> None:
    """Each column of a refused event is compared, within its row of quarantine."""
    assert POISON.kept is not None
    sent_at, received_at = time.time(), datetime.now(UTC)
    await keep(
        connection,
        POISON,
        received_at=received_at,
        query=b"",
        event=encode_event(refused_event(**{"received_at": received_at} | changes)),
        **POISON.kept._asdict(),
    )
    verdict = await found(connection, AnswerKind.DROPPED, sent_at, POISON)
    assert list(verdict.lost) == ([POISON.number] if changes else [])


async def test_row_of_an_ignored_callback_is_doubled(connection: asyncpg.Connection) -> None:
    """An ignored callback has no place in quarantine."""
    sent_at = time.time()
    await keep(connection, IGNORED)
    verdict = await found(connection, AnswerKind.DROPPED, sent_at, IGNORED)
    assert list(verdict.doubled) == [IGNORED.number]


async def test_row_of_no_sending_is_doubled(connection: asyncpg.Connection) -> None:
    """A row in quarantine of no sending is one too many."""
    await keep(connection, query=b"sending=sending-0000000099")
    assert (await found(connection, AnswerKind.ERROR, time.time())).doubled


async def test_drop_answered_before_its_commit_is_lied(connection: asyncpg.Connection) -> None:
    """An answer before the commit of the row: lied, even if the commit follows."""
    received_at = datetime.now(UTC)
    ledger, now = Ledger(), time.time()
    ledger.sendings[NUMBER] = Sending(UNKNOWN.number, AnswerKind.DROPPED, now, now)
    await keep(connection, received_at=received_at)
    verdict = await judge(connection, GENERATOR, ledger, EVENTS)
    assert (list(verdict.lied), verdict.lost) == ([UNKNOWN.number], {})


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (MALFORMED, AnswerKind.DROPPED),
        (UNKNOWN, AnswerKind.MALFORMED),
        (PLAIN, AnswerKind.MALFORMED),
    ],
)
async def test_false_reason_is_lied(
    connection: asyncpg.Connection, sent: SimulatedEvent, answer: AnswerKind
) -> None:
    """A body that is answered as readable or unreadable, and is not: lied."""
    verdict = await found(connection, answer, time.time(), sent)
    assert list(verdict.lied) == [sent.number]


@pytest.mark.parametrize(
    "changes",
    [
        {"query": f"sending=sending-0000000007&label={LEAK}".encode()},
        {"query": b"sending=sending-0000000007&label=%6c" + LEAK[1:].encode()},
        {"body": LEAK.encode()},
        {"event": LEAK.encode()},
        {"subject": LEAK},
    ],
)
async def test_secret_in_quarantine_is_leaked(
    connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """The secret in any column, as it is or encoded: leaked."""
    # Another one: at their end the tests search the server's files for the true one.
    monkeypatch.setattr(quarantine, "SECRET", LEAK)
    sent_at = time.time()
    await keep(connection, **changes)
    verdict = await found(connection, AnswerKind.ERROR, sent_at)
    assert list(verdict.leaked) == [UNKNOWN.number]
    assert not verdict.is_clean


async def test_refused_event_in_another_form_is_lost(connection: asyncpg.Connection) -> None:
    """An event in a form that no version of the gateway reads is no event."""
    assert POISON.kept is not None
    received_at = datetime.now(UTC)
    columns = msgspec.to_builtins(refused_event(received_at=received_at), builtin_types=(bytes,))
    await keep(
        connection,
        POISON,
        received_at=received_at,
        query=b"",
        event=msgspec.msgpack.encode((2, columns)),
        **POISON.kept._asdict(),
    )
    verdict = await found(connection, AnswerKind.DROPPED, received_at.timestamp(), POISON)
    assert list(verdict.lost) == [POISON.number]


@pytest.mark.parametrize(
    ("answered_at", "is_lost"), [(-1.0, True), (0.0, True), (1.0, False), (10.0, False), (11, True)]
)
async def test_missing_row_of_a_drop_around_a_restore_is_lost(
    connection: asyncpg.Connection, answered_at: float, *, is_lost: bool
) -> None:
    """A restore may lose the drops that were answered between its target and its end."""
    target = time.time() - 60
    ledger, at = Ledger(), target + answered_at
    ledger.note(UNKNOWN.number, AnswerKind.DROPPED, at, at)
    ledger.sendings[NUMBER] = Sending(UNKNOWN.number, AnswerKind.DROPPED, at, at)
    chronicle = Chronicle(cuts=[Cut(target, target + 10)])
    verdict = await judge(connection, GENERATOR, ledger, EVENTS, chronicle=chronicle)
    assert list(verdict.lost) == ([UNKNOWN.number] if is_lost else [])
