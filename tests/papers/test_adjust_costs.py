"""The size of a row, with the callback URL of the page on setting Adjust up."""

import re
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

import asyncpg
import pytest

from adapters import adjust
from app.event import App, Callback, Event
from bench.performance.footprint import sizes
from sinks.timescale.sink import TimescaleSink
from tests.adjust_page import SECTIONS, URLS
from tests.events import write_all

ROWS, BATCH = 20_000, 500
ARRIVAL = datetime(2026, 1, 2, 12, tzinfo=UTC)
TOLERANCE = 0.1
# These differ from callback to callback; all other values are the same text, as campaigns are.
IDENTIFIERS = ("adid", "idfa", "idfv", "nonce")
DOCUMENTED = {
    kept: int(number.replace(",", ""))
    for kept, number in re.findall(
        r"^\| `?(keep = \[\]|everything)`? \| ([\d,]+) \|$",
        SECTIONS["Stored data"],
        re.MULTILINE,
    )
}


def event_of(number: int, random: Random, app: App) -> Event:
    """The event of a callback with every parameter, of a user with a purchase an hour."""
    made = {name: f"{random.getrandbits(128):032x}" for name in IDENTIFIERS}
    for name in ("idfa", "idfv"):
        made[name] = str(UUID(made[name])).upper()
    occurred_at = ARRIVAL - timedelta(seconds=1 + random.random() * 40_000)
    made |= {
        "nonce": made["nonce"][:12],
        "created_at_milli": f"{occurred_at.timestamp():.3f}".replace(".", ""),
    }
    sent = URLS["Events"].fill(made) | {"user_id": f"usr_{number}", "gps_adid": ""}
    del sent["secret"]
    event = adjust.parse(Callback(query=sent, received_at=ARRIVAL), app)
    assert isinstance(event, Event)
    return event


@pytest.mark.parametrize(("kept", "keep"), [("keep = []", ()), ("everything", None)])
async def test_row_takes_the_documented_bytes(
    sink: TimescaleSink, connection: asyncpg.Connection, kept: str, keep: tuple[str, ...] | None
) -> None:
    """A row of the documented URL takes the documented bytes, indexes included."""
    if not await connection.fetchval(
        "SELECT count(*) FROM pg_extension WHERE extname = 'timescaledb'"
    ):
        pytest.skip("the figures are for TimescaleDB")
    random = Random(1)  # noqa: S311 - repeatable is wanted
    app = App(
        workspace_id="ws_demo",
        vendor="adjust",
        app_token="abc123token",
        events={"g3mz3t": "purchase"},
        keep=keep,
    )
    events = [event_of(number, random, app) for number in range(ROWS)]
    before = sum(await sizes(connection))
    for start in range(0, ROWS, BATCH):
        await write_all(sink, events[start : start + BATCH])
    assert await connection.fetchval("SELECT count(*) FROM events") == ROWS
    per_row = round((sum(await sizes(connection)) - before) / ROWS)
    assert DOCUMENTED[kept] == pytest.approx(per_row, rel=TOLERANCE)
