"""`replay` under faults: killed at each step, without its database, beside others, on poison."""

import asyncio
import signal
import sys
from collections.abc import Callable
from datetime import timedelta
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis.asyncio

from bench.testbed.process import PATIENCE_S, POLL_S
from bench.testbed.proxy import Proxy
from tests.gateways import Process
from tests.replays import (
    ARRIVED_AT,
    Ended,
    Replays,
    arrivals,
    drop,
    drops,
    in_quarantine,
    keep,
)

WRITTEN = b'{"received":1,"written":1,"duplicate":0,"dropped":0}'
CLAIMS, SINK = "app.claims.redis:RedisClaims", "sinks.timescale.sink:TimescaleSink"
NO_XX = "ALTER TABLE events ADD CONSTRAINT c CHECK (country <> 'XX')"
ROWS = "sinks.timescale.replay"
STEPS = [
    (f"{ROWS}:begin_import", "after"),
    (f"{ROWS}:announce_days", "after"),
    (f"{CLAIMS}.claim", "after"),
    (f"{SINK}.write", "before"),
    (f"{SINK}.write", "after"),
    (f"{CLAIMS}.settle", "after"),
    (f"{SINK}.write_contested", "after"),
    (f"{ROWS}:remove", "before"),
    (f"{ROWS}:_subtract", "before"),
    (f"{ROWS}:_subtract", "after"),
    (f"{ROWS}:remove", "after"),
    (f"{ROWS}:finish_import", "before"),
]  # fmt: skip


async def end_leases(redis_url: str) -> None:
    """Let the leases of all claims end now, as they do after a while."""
    async with redis.asyncio.Redis.from_url(redis_url) as client:
        async for key in client.scan_iter():
            if await client.get(key) != b"seen":
                await client.delete(key)


async def kept_users(connection: asyncpg.Connection) -> set[str]:
    """The users of the callbacks in quarantine."""
    records = await connection.fetch("SELECT convert_from(query, 'UTF8') FROM dropped")
    return {record[0].rpartition("user_id=")[2].partition("&")[0] for record in records}


async def test_replay_killed_at_any_step_loses_and_doubles_nothing(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """Killed with -9, a replay leaves each event in the table or in quarantine, or in both.

    The size of quarantine stays right, and no day of an event that was written is hidden.
    """
    await connection.execute(NO_XX)
    users = {"poison"}
    # It cannot be written with others, and so is contested in each run.
    await keep(replays.database_url, [drop("poison", parameters={"country": "XX"})])
    for number, (step, moment) in enumerate(STEPS):
        day = timedelta(days=number)
        sent = [
            drop(f"u{number}.{n}", received_at=ARRIVED_AT + day,
                 parameters={"created_at": f"{(ARRIVED_AT + day).timestamp():.0f}"})
            for n in range(60)
        ]  # fmt: skip
        users |= {f"u{number}.{n}" for n in range(60)}
        await keep(replays.database_url, sent)
        await end_leases(replays.redis_url)
        app = (sys.executable, "-m", "tests.killed", step, moment)
        ended = await asyncio.to_thread(replays.run, app=app)
        assert ended.exit_code == -signal.SIGKILL, (step, moment, ended)
        written = set(await arrivals(connection))
        assert written | await kept_users(connection) == users, (step, moment)
        await in_quarantine(connection)
        hidden = await connection.fetchval(
            "SELECT count(*) FROM events WHERE NOT EXISTS (SELECT FROM imports "
            "WHERE (occurred_at AT TIME ZONE 'UTC')::date BETWEEN first_day AND last_day)"
        )
        assert hidden == 0, (step, moment)
    await end_leases(replays.redis_url)
    ended = await asyncio.to_thread(replays.run)
    assert (ended.exit_code, ended.errors) == (0, "")
    assert ended.report["unfinished"][0] == "2025-06-21"
    assert set(await arrivals(connection)) == users - {"poison"}
    assert await in_quarantine(connection) == 1


async def until_written(connection: asyncpg.Connection, rows: int = 1) -> None:
    """Return when so many events are in the table."""
    async with asyncio.timeout(PATIENCE_S):
        while await connection.fetchval("SELECT count(*) FROM events") < rows:
            await asyncio.sleep(POLL_S)


async def test_database_that_goes_away_ends_the_replay_with_one_line(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """The replay ends with its sums and the cause; the next one does the rest."""
    await keep(replays.database_url, drops(2_000))
    address = urlsplit(replays.database_url)
    proxy = Proxy(address.port or 5432)
    await proxy.open()
    netloc = f"{address.netloc.rpartition(':')[0]}:{proxy.port}"
    through = replays.but(DATABASE_URL=urlunsplit(address._replace(netloc=netloc)))
    running = asyncio.create_task(asyncio.to_thread(through.run, "--yes", "--json", "--rate", "50"))
    await until_written(connection)
    proxy.close()
    ended = await running
    assert ended.exit_code == 1
    assert not ended.report["is_complete"]
    assert ended.errors.splitlines()[-1].startswith("database: ")
    assert ended.errors.count("database: ") == 1
    written = await connection.fetchval("SELECT count(*) FROM events")
    assert 0 < written < 2_000
    ended = await asyncio.to_thread(replays.run)
    assert (ended.exit_code, ended.report["left"]) == (0, {})
    assert len(await arrivals(connection)) == 2_000
    assert await in_quarantine(connection) == 0


async def test_live_delivery_and_replay_write_one_row_each(
    replays: Replays, connection: asyncpg.Connection, run: Callable[..., Process]
) -> None:
    """The same callbacks come live while they are replayed: each is written once."""
    count = 400
    await keep(replays.database_url, drops(count, timedelta(milliseconds=1)))
    written: list[bool] = []
    with run() as gateway:
        await asyncio.to_thread(gateway.wait_until_ready)
        replayed = asyncio.create_task(
            asyncio.to_thread(replays.run, "--yes", "--json", "--rate", "100")
        )
        await until_written(connection)
        users = iter(reversed(range(count)))

        async def deliver() -> None:
            for user in users:
                answer = await gateway.callback(user_id=f"u{user}")
                while answer.status != 200:  # as the vendor does
                    answer = await gateway.callback(user_id=f"u{user}")
                written.append(answer.body == WRITTEN)

        await asyncio.gather(*(deliver() for _ in range(8)))
        ended = await replayed
    assert (ended.exit_code, ended.report["left"]) == (0, {})
    assert len(await arrivals(connection)) == count
    assert await in_quarantine(connection) == 0
    assert written.count(True) + ended.report["written"] <= count


async def test_two_replays_at_once_share_the_work(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """Two replays of one selection write each event once, and both end well."""
    await keep(replays.database_url, drops(1_200, timedelta(milliseconds=1)))
    both: list[Ended] = await asyncio.gather(*(asyncio.to_thread(replays.run) for _ in range(2)))
    assert [(ended.exit_code, ended.errors) for ended in both] == [(0, ""), (0, "")]
    assert sum(ended.report["written"] for ended in both) == 1_200
    assert len(await arrivals(connection)) == 1_200
    assert await in_quarantine(connection) == 0
