"""The SQL of the documentation: each block is run, on rows for which the right answer is known."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

import asyncpg
import pytest

from app.dropped import Dropped
from app.event import DropReason, Event
from bench.testbed import pgbouncer
from bench.testbed.process import ROOT
from sinks.timescale.sink import TimescaleSink
from tests import deploying
from tests.events import event, write
from tests.kept import drop, keep

# The runbook's blocks are run by test_runbook, those of loading.md by test_loading, those of hub.md
# by test_hub; test_deploying_database names the tests of its page.
_ELSEWHERE = {deploying.PAGE, "docs/loading.md", "docs/hub.md"}
_DOCS = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} - _ELSEWHERE
PAGES = ("README.md", *sorted(_DOCS), "adapters/README.md")


def blocks() -> Iterator[tuple[str, str]]:
    """Yield each SQL block with its page and the heading above it."""
    for page in PAGES:
        heading = ""
        pattern = r"^#+ ([^\n]*)$|^```sql\n(.*?)^```"
        for found in re.finditer(pattern, (ROOT / page).read_text(), re.MULTILINE | re.DOTALL):
            if found[2] is None:
                heading = found[1]
            else:
                yield f"{page}: {heading}", found[2]


# Noon, two days ago: within the last week, and never at the edge of a day.
DAY = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
NOON = DAY + timedelta(hours=12)
NOVEMBER = datetime(2026, 11, 10, 12, tzinfo=UTC)
RECENTLY = datetime.now(UTC) - timedelta(hours=2)


def sent(name: str, occurred_at: datetime = NOON, /, **fields: Any) -> Event:
    """An event of the workspace of the queries; a value without a column is in `properties`."""
    columns = {n: fields.pop(n) for n in list(fields) if n in Event.__struct_fields__}
    known = {"workspace_id": "ws_demo", "occurred_at": occurred_at, "properties": fields}
    return event(name, **known | columns)


class Answer(NamedTuple):
    """The rows that a query is given, and those that it must return."""

    given: list[Event]
    rows: list[tuple[Any, ...]]
    dropped: Sequence[Dropped] = ()


SPRING = {"network_name": "Network1", "campaign_name": "spring", "currency": "USD"}
NOT_ASKED_FOR = [
    sent("tester", revenue_float="999", environment="sandbox", **SPRING),
    sent("stranger", workspace_id="ws_other", revenue_float="888", **SPRING),
    sent("long ago", NOON - timedelta(days=90), revenue_float="777", **SPRING),
]
MONEY = [
    sent("a", revenue="499", revenue_float="4.99", environment="production", **SPRING),
    sent("b", revenue_float="1.2e-05", **SPRING | {"currency": "usd"}),
    sent("c", NOON - timedelta(days=1), revenue="10", currency="EUR", environment="production"),
    sent("d", NOON - timedelta(days=1), revenue="12,50", currency="EUR"),
    sent("e", campaign_name="spring"),
]
ANSWERS = {
    "Revenue of the last week, by day and currency": Answer(
        MONEY + NOT_ASKED_FOR,
        [(DAY - timedelta(days=1), "EUR", Decimal(10)), (DAY, "USD", Decimal("4.990012"))],
    ),
    "Revenue by network and campaign": Answer(
        MONEY
        + NOT_ASKED_FOR
        + [
            sent("other type", revenue_float="5", event_type="gift", **SPRING),
            sent("three weeks", NOON - timedelta(days=21), revenue_float="20", **SPRING),
        ],
        [
            ("Network1", "spring", "USD", Decimal("24.990012"), 3),
            (None, None, "EUR", Decimal(10), 2),
        ],
    ),
    "Installs and buyers by country, for one month": Answer(
        [
            *(sent(f"i{n}", NOVEMBER, event_type="app_install", country="DE") for n in range(3)),
            sent("buyer", NOVEMBER, country="DE"),
            sent("again", NOVEMBER, user_id="buyer", country="DE"),
            sent("device", NOVEMBER, user_id=None, adid="a1", country="DE"),
            sent("french", NOVEMBER, event_type="app_install", country="FR"),
            sent("tester", NOVEMBER, event_type="app_install", country="FR", environment="sandbox"),
            sent("too late", datetime(2026, 12, 1, tzinfo=UTC), country="FR"),
            sent("stranger", NOVEMBER, workspace_id="ws_other", country="FR"),
        ],
        [("DE", 3, 2), ("FR", 1, 0)],
    ),
    "How late events arrive, and how many each app sends": Answer(
        [
            *(
                sent(f"{n}", RECENTLY, received_at=RECENTLY + timedelta(seconds=n))
                for n in range(1, 101)
            ),
            sent("other", RECENTLY, received_at=RECENTLY + timedelta(hours=1), app_token="other"),
            sent("tester", RECENTLY, received_at=RECENTLY, environment="sandbox"),
            sent("older", RECENTLY - timedelta(days=2), received_at=RECENTLY),
        ],
        [("abc123token", 100, timedelta(seconds=99)), ("other", 1, timedelta(hours=1))],
    ),
    "Revenue that is no number": Answer(
        [
            *MONEY,
            sent("f", revenue="free", revenue_float="$4.99", app_token="other"),
            sent("g", revenue="12,50"),
            sent("tester", revenue="nothing", environment="sandbox"),
        ],
        [("abc123token", "12,50", 2), ("other", "$4.99", 1)],
    ),
    "Where users have no name": Answer(
        [
            sent("1", RECENTLY, user_id=None, adid="a1", properties={"user_id": "null"}),
            sent("2", RECENTLY, user_id=None, properties={"user_id": "null"}),
            sent("3", RECENTLY, user_id=None, properties={"user_id": "guest"}),
            sent("named", RECENTLY),
            sent("silent", RECENTLY, user_id=None),
            sent(
                "tester",
                RECENTLY,
                user_id=None,
                properties={"user_id": "0", "environment": "sandbox"},
            ),
        ],
        [("abc123token", "null", 2, 1), ("abc123token", "guest", 1, 1)],
    ),
    "Sums by day": Answer(
        MONEY
        + NOT_ASKED_FOR
        + [
            sent("edge", DAY, revenue="1", currency="USD"),
            sent("before", DAY - timedelta(microseconds=1), revenue="3", currency="USD"),
            sent("other type", revenue="2", currency="EUR", app_token="other"),
        ],
        [
            (DAY - timedelta(days=1), "abc123token", "EUR", Decimal(10), 2, 1),
            (DAY - timedelta(days=1), "abc123token", "USD", Decimal(3), 1, 0),
            (DAY, "abc123token", "USD", Decimal("5.990012"), 3, 0),
            (DAY, "other", "EUR", Decimal(2), 1, 0),
        ],
    ),
    "Events without a mapping": Answer(
        [],
        [("abc123token", "zzzzzz", 2, NOON), ("abc123token", "", 1, NOON)],
        [
            drop("zzzzzz", workspace_id="ws_demo", received_at=NOON),
            drop("zzzzzz", workspace_id="ws_demo"),
            drop("", workspace_id="ws_demo", received_at=NOON),
            drop("elsewhere"),
            drop("nowhere", workspace_id="ws_demo", reason=DropReason.INVALID_TIMESTAMP),
        ],
    ),
}  # fmt: skip
# Blocks that set something up: why they are not run here, and the tests that run them.
ADMINISTRATIVE: Mapping[str, tuple[str, set[str]]] = {
    "docs/deploying.md: Through PgBouncer": (
        "roles belong to the whole server: test_pgbouncer gives them to a role of its own",
        set(pgbouncer.ROLE_SETTINGS),
    ),
}


def test_every_block_has_an_answer() -> None:
    """Each block is a query with a known answer, or is run by another test."""
    found = dict(blocks())
    assert len(found) == len(list(blocks())), "two blocks under one heading"
    assert found.keys() == {f"docs/analysts.md: {name}" for name in ANSWERS} | ADMINISTRATIVE.keys()
    for place, (_, lines) in ADMINISTRATIVE.items():
        assert set(found[place].splitlines()) == lines


@pytest.mark.parametrize("heading", ANSWERS)
async def test_query_returns_the_right_rows(
    sink: TimescaleSink, connection: asyncpg.Connection, heading: str
) -> None:
    """A documented query returns the right rows, without those of the sandbox."""
    answer = ANSWERS[heading]
    await write(sink, answer.given, contested=True)  # their days may have no chunk yet
    if answer.dropped:
        await keep(connection, *answer.dropped)
    rows = await connection.fetch(dict(blocks())[f"docs/analysts.md: {heading}"])
    assert [tuple(row.values()) for row in rows] == answer.rows


async def test_columns_of_the_view_are_documented(connection: asyncpg.Connection) -> None:
    """The page names every column of the table and of the view, and no other."""
    page = (ROOT / "docs/analysts.md").read_text()
    table, view = re.findall(r"\| column \| \|\n\|---\|---\|\n((?:\|.*\n)+)", page)
    [days] = re.findall(r"\| `events_by_day` \| .*\n\|---\|---\|---\|\n((?:\|.*\n)+)", page)

    async def columns(relation: str) -> set[str]:
        query = "SELECT attname FROM pg_attribute WHERE attrelid = $1::regclass AND attnum > 0"
        return {record[0] for record in await connection.fetch(query, relation)}

    named = {
        name for row in table.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])
    }
    more = {name for row in view.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == await columns("events")
    assert named | more == await columns("revenue_events")
    [text] = re.findall(r"The view `unmapped_events` .*? Its columns:\n(.*?)\n\n", page, re.DOTALL)
    assert set(re.findall(r"`(\w+)`", text)) == await columns("unmapped_events")
    of_events, of_revenue = (
        {name for row in days.splitlines() for name in re.findall(r"`(\w+)`", row.split("|")[cell])}
        for cell in (1, 2)
    )
    assert of_events == await columns("events_by_day")
    # "The same" are the columns of the view beside it.
    assert of_revenue | of_events == await columns("revenue_by_day")
