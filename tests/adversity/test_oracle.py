"""The oracle by itself: each way to break the promise is seen, and nothing else is."""

import time
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from typing import Any

import asyncpg
import msgspec
import pytest

from bench.faults.ledger import Ledger, Told, understand
from bench.faults.oracle import Verdict, judge
from bench.faults.stories import Author, Plot, Story
from bench.testbed.caller import Answer

AUTHOR = Author(seed=1)
STORIES = 200


def story(plot: Plot) -> Story:
    """The first story of this plot."""
    stories: Iterator[Story] = map(AUTHOR.write, count())
    return next(story for story in stories if story.plot is plot)


PLAIN, UNMAPPED, STABLE = story(Plot.PLAIN), story(Plot.UNMAPPED), story(Plot.STABLE)


async def store(connection: asyncpg.Connection, kept: Story, **changes: Any) -> None:
    """Put the row of a story into the table, but for the changes."""
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


async def found(connection: asyncpg.Connection, told: Story, *answers: Told) -> Verdict:
    """What the oracle says when the vendor was told this, a moment ago."""
    ledger = Ledger()
    for answer in answers:
        ledger.note(told.number, answer, time.time())
    return await judge(connection, AUTHOR, ledger, STORIES)


async def test_all_is_well(connection: asyncpg.Connection) -> None:
    """One row for each event, whatever else the vendor was told on the way, is clean."""
    await store(connection, PLAIN)
    await store(connection, STABLE)
    ways = (Told.ERROR, Told.UNAVAILABLE, Told.CLOSED, Told.WRITTEN, Told.DUPLICATE)
    assert (await found(connection, PLAIN, *ways)).is_clean
    assert (await found(connection, STABLE, Told.DUPLICATE)).is_clean
    assert (await found(connection, UNMAPPED, Told.ERROR, Told.DROPPED, Told.DROPPED)).is_clean
    # An event that nobody was told of may be there: its last answer was lost on the way.
    assert (await found(connection, PLAIN, Told.TIMED_OUT)).is_clean


@pytest.mark.parametrize("answer", [Told.WRITTEN, Told.DUPLICATE])
async def test_no_row(connection: asyncpg.Connection, answer: Told) -> None:
    """Told written or duplicate, and no row: lost."""
    verdict = await found(connection, PLAIN, Told.ERROR, answer)
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
async def test_other_content(connection: asyncpg.Connection, changes: dict[str, Any]) -> None:
    """Told written, and the row is another: lost."""
    assert PLAIN.row is not None
    if "occurred_at" in changes:
        changes = {"occurred_at": max(PLAIN.row.occurred_at) + changes["occurred_at"]}
    await store(connection, PLAIN, **changes)
    assert list((await found(connection, PLAIN, Told.WRITTEN)).lost) == [PLAIN.number]


async def test_two_rows(connection: asyncpg.Connection) -> None:
    """Two rows of one event are doubled, also when the vendor knows of none."""
    assert STABLE.row is not None
    for occurred_at in STABLE.row.occurred_at:
        await store(connection, STABLE, occurred_at=occurred_at)
    verdict = await found(connection, STABLE, Told.ERROR)
    assert (list(verdict.doubled), verdict.rows) == ([STABLE.number], 2)


async def test_a_row_of_nobody(connection: asyncpg.Connection) -> None:
    """A row that no callback asked for is one too many."""
    await store(connection, PLAIN, user_id="somebody else")
    assert (await found(connection, PLAIN)).doubled


@pytest.mark.parametrize(
    ("plot", "answers"),
    [
        (PLAIN, [Told.WRITTEN, Told.WRITTEN]),
        (PLAIN, [Told.DROPPED]),
        (PLAIN, [Told.REFUSED]),
        (PLAIN, [Told.OTHER_2XX]),
        (PLAIN, [Told.OTHER_5XX]),
        (UNMAPPED, [Told.REFUSED]),
    ],
)
async def test_an_answer_that_is_not_true(
    connection: asyncpg.Connection, plot: Story, answers: list[Told]
) -> None:
    """Written twice, a good callback dropped or refused, or an answer of another form: a lie."""
    await store(connection, PLAIN)
    assert list((await found(connection, plot, *answers)).lied) == [plot.number]


async def test_a_row_of_a_dropped_callback(connection: asyncpg.Connection) -> None:
    """What was to be dropped has no row."""
    await store(connection, PLAIN, user_id=f"u{UNMAPPED.number}")
    assert list((await found(connection, UNMAPPED, Told.DROPPED)).lied) == [UNMAPPED.number]


@pytest.mark.parametrize("answer", [Told.WRITTEN, Told.DUPLICATE])
async def test_an_answer_before_the_commit(connection: asyncpg.Connection, answer: Told) -> None:
    """An answer that went out before its row was committed is a lie, even if it came true."""
    ledger = Ledger()
    ledger.note(PLAIN.number, answer, time.time())
    await store(connection, PLAIN)
    verdict = await judge(connection, AUTHOR, ledger, STORIES)
    assert list(verdict.lied) == [PLAIN.number]
    assert not verdict.lost


WRITTEN = b'{"received":1,"written":1,"duplicate":0,"dropped":0}'
RETRY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1"


@pytest.mark.parametrize(
    ("status", "body", "head", "told"),
    [
        (200, WRITTEN, b"", Told.WRITTEN),
        (200, WRITTEN.replace(b"1,", b"2,", 1), b"", Told.OTHER_2XX),
        (200, b"ok", b"", Told.OTHER_2XX),
        (201, WRITTEN, b"", Told.OTHER_2XX),
        (204, b"", b"", Told.OTHER_2XX),
        (301, b"", b"", Told.REFUSED),
        (400, b'{"error":"Malformed body."}', b"", Told.REFUSED),
        (429, b"", b"", Told.REFUSED),
        (500, b'{"error":"Internal Server Error"}', b"", Told.ERROR),
        (500, b"Traceback", b"", Told.OTHER_5XX),
        (503, b'{"error":"Service Unavailable"}', RETRY, Told.UNAVAILABLE),
        (503, b'{"error":"Service Unavailable"}', b"HTTP/1.1 503", Told.OTHER_5XX),
        (502, b"", b"", Told.OTHER_5XX),
        (0, b"timed out", b"", Told.TIMED_OUT),
        (0, b"refused", b"", Told.NO_CONNECTION),
        (0, b"closed", b"", Told.CLOSED),
    ],
)
def test_an_answer_is_misunderstood(status: int, body: bytes, head: bytes, told: Told) -> None:
    """What an answer means is taken to the letter of the contract."""
    assert understand(Answer(status, body, 0, 0, head)) is told
