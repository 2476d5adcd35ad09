"""`replay` on events that are poison, and on events that another writer has under way."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import asyncpg

import adapters
from app import workspaces_file
from app.claims.redis import RedisClaims
from app.commands.replay_run import BUSY, Databases, Replay
from app.dropped import Dropped, encode_event
from app.event import DropReason, Event
from app.replay import Restorer
from sinks.timescale import replay as rows_of
from sinks.timescale.drops import Selection
from sinks.timescale.sink import TimescaleSink
from tests.adversity.test_replay_faults import NO_XX, until_written
from tests.events import event
from tests.gateways import Services, make_claims
from tests.replays import Replays, arrivals, drop, drops, in_quarantine, keep, query_of

BODY = b'{"event_token": "g3mz3t", "created_at": 1750500000, "user_id": "body", "l": "\\ud800x"}'


def restorer_of(replays: Replays) -> Restorer:
    """The mapping of the workspaces file."""
    vendors = adapters.load()
    apps = workspaces_file.read(Path(replays.settings["WORKSPACES_FILE"]), vendors)
    return Restorer(vendors=vendors, apps=apps, retention_d=0, set_parameters={})


def events_of(replays: Replays, dropped: Sequence[Dropped]) -> list[Event]:
    """The events that drops are by now."""
    restored = map(restorer_of(replays).restore, dropped)
    return [event for event in restored if isinstance(event, Event)]


async def test_poison_bytes_are_stored_as_http_stores_them(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """NUL, broken UTF-8, lone surrogates and the longest callback become clean text."""
    raw = {"nul": b"a%00b", "byte": b"a\x00\xffb", "half": b"a%ED%A0%80b", "long": b"x" * 65_000}
    await keep(
        replays.database_url,
        [drop("", query=query_of(user_id=user) + b"&label=" + text) for user, text in raw.items()]
        + [drop("", method="POST", query=b"app_token=abc123token", body=BODY)],
    )
    ended = await asyncio.to_thread(replays.run)
    assert ended.counts == (5, 5, 0, 0, 0)
    labels = await connection.fetch(
        "SELECT user_id, coalesce(properties ->> 'label', properties ->> 'l') FROM events"
    )
    stored: dict[str, str] = {record[0]: record[1] for record in labels}
    assert stored.pop("long") == "x" * 65_000
    assert stored == {"nul": "ab", "byte": "a\ufffdb", "half": "a\ufffd\ufffd\ufffdb", "body": "x"}


async def test_refused_events_stay_and_their_neighbours_are_written(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """An event that the database refuses stays in quarantine, until the schema is mended."""
    await connection.execute(NO_XX)
    refused = encode_event(event("refused", country="XX"))
    poison = [
        drop("poison", parameters={"country": "XX"}),
        drop("", query=b"", event=refused, reason=DropReason.REFUSED, subject="purchase"),
    ]
    await keep(replays.database_url, [*drops(30), *poison, *drops(60)[30:]])
    ended = await asyncio.to_thread(replays.run)
    assert (ended.exit_code, ended.counts) == (0, (62, 60, 0, 2, 0))
    assert ended.report["dropped"] == {"refused": 2}
    assert await in_quarantine(connection) == 2
    await connection.execute("ALTER TABLE events DROP CONSTRAINT c")
    assert (await asyncio.to_thread(replays.run)).counts == (2, 2, 0, 0, 0)
    assert await in_quarantine(connection) == 0


async def test_event_under_way_waits_for_the_next_round(
    replays: Replays, connection: asyncpg.Connection, services: Services, sink: TimescaleSink
) -> None:
    """An event that a live delivery has claimed holds nobody up, and is written after it."""
    dropped = drops(60)
    live = make_claims(services, sink, lease_s=600)
    ids = [event.event_id for event in events_of(replays, dropped[:1])]
    await live.claim(ids)
    await keep(replays.database_url, dropped)
    running = asyncio.create_task(asyncio.to_thread(replays.run))
    await until_written(connection, 59)
    assert "u0" not in await arrivals(connection)
    await live.release(ids)
    await live.close()
    ended = await running
    assert (ended.exit_code, ended.counts) == (0, (60, 60, 0, 0, 0))
    assert await in_quarantine(connection) == 0


async def test_event_that_stays_under_way_is_left(
    replays: Replays,
    connection: asyncpg.Connection,
    services: Services,
    sink: TimescaleSink,
    claims: RedisClaims,
) -> None:
    """A claim that does not end leaves its event in quarantine, counted as left."""
    dropped = drops(3)
    others = make_claims(services, sink, lease_s=600)
    await others.claim([event.event_id for event in events_of(replays, dropped[:1])])
    await keep(replays.database_url, dropped)
    extent = await rows_of.read_overview(connection, Selection())
    assert extent is not None
    replay = Replay(
        Databases(connection, connection), restorer_of(replays), claims, sink,
        rate=1_000, busy_s=0, stop=asyncio.Event(), show=lambda _: None,
    )  # fmt: skip
    import_id = await rows_of.begin_import(connection, "replay")
    await replay.run(import_id, Selection(), extent)
    await others.close()
    assert (replay.sums.read, replay.sums.written, replay.sums.left) == (3, 2, {BUSY: 1})
    assert await in_quarantine(connection) == 1
