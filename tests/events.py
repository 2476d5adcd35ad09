"""Events for tests of the parts behind the adapter, and the rows that they leave."""

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import blake2b
from typing import Any

import asyncpg
import msgspec

from app import commit as product
from app.event import Event, Outcome
from bench.testbed.process import PATIENCE_S
from sinks import Sink
from sinks.timescale.schema import read_identity
from sinks.timescale.sink import TimescaleSink

OCCURRED_AT = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)
# The `created_at` of `tests.gateways.query`.
FIRST_CALLBACK_AT = datetime.fromtimestamp(1_750_500_000, UTC)

# The commits of a gateway without a clock: no event of a test is too late.
commit = partial(product.commit, now=lambda: OCCURRED_AT, age_max=timedelta(0))
commit_contested = partial(product.commit_contested, now=lambda: OCCURRED_AT, age_max=timedelta(0))


def event(name: str, **fields: Any) -> Event:
    """An event that differs from those of other names."""
    digest = blake2b(name.encode(), digest_size=16).digest()
    known = Event(
        event_id=digest,
        occurred_at=OCCURRED_AT + timedelta(microseconds=digest[0]),
        received_at=OCCURRED_AT + timedelta(minutes=1),
        workspace_id="ws_test",
        vendor="adjust",
        app_token="abc123token",
        event_type="purchase",
        user_id=name,
        properties={"revenue": "1.50", "currency": "eur"},
    )
    return msgspec.structs.replace(known, **fields)


def events(*names: str, **fields: Any) -> list[Event]:
    """Several of them."""
    return [event(name, **fields) for name in names]


async def make_chunks(connection: asyncpg.Connection) -> None:
    """Make the chunks that most tests write into: else their events would be written apart."""
    days = [OCCURRED_AT + timedelta(days=day) for day in range(-1, 7)]
    for moment in (*days, FIRST_CALLBACK_AT):
        await connection.execute(
            "INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, "
            "app_token, event_type, properties) "
            "SELECT gen_random_uuid(), $1, $1, '', '', '', '', '{}'",
            moment,
        )
    await connection.execute("DELETE FROM events")


async def write(sink: Sink, batch: Sequence[Event], *, contested: bool) -> list[Outcome]:
    """Write events as a batch, or each as a contested one."""
    if contested:
        return [await sink.write_contested(event) for event in batch]
    return list(await sink.write(batch))


async def write_all(sink: Sink, batch: Sequence[Event]) -> list[Outcome]:
    """Write a batch as the gateway does: contested events are written again, alone."""
    outcomes: list[Outcome] = []
    for event, outcome in zip(batch, await sink.write(batch), strict=True):
        is_contested = outcome is Outcome.CONTESTED
        outcomes.append(await sink.write_contested(event) if is_contested else outcome)
    return outcomes


async def stored(connection: asyncpg.Connection) -> set[str]:
    """The users of all rows; fails where one has two."""
    users = [record[0] for record in await connection.fetch("SELECT user_id FROM events")]
    assert len(users) == len(set(users))
    return set(users)


async def generation_of(connection: asyncpg.Connection) -> str:
    """The name of the data behind a connection."""
    return (await read_identity(connection)).generation


async def until_lost(sink: TimescaleSink) -> None:
    """Return when the sink has noticed that its connection is gone."""
    async with asyncio.timeout(PATIENCE_S):
        while sink.generation is not None:
            await asyncio.sleep(0)
