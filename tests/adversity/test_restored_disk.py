"""A disk that is put back: events that Redis has seen and the disk lacks are written again."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.dev.processes import Server
from bench.topologies.maker import Maker
from bench.topologies.servers import HYPERTABLE, PLAIN, execute, fetch_value, until_primary, url_of
from tests.deploying import statements
from tests.gateways import Process, Services
from tests.outcomes import Parameters, callbacks, outcome, serving, until_told

BOTH = (HYPERTABLE, PLAIN)
TIMELINE = "SELECT timeline_id FROM pg_control_checkpoint()"
# Longer than the gateway takes to see the value that was written by hand.
FORGOTTEN_S = 3.0


@pytest.fixture(scope="module")
def server(maker: Maker) -> Server:
    """A server without a standby."""
    return maker.primary("alone")


@pytest.fixture
def gateways(server: Server, services: Services, tmp_path: Path) -> Iterator[dict[str, Process]]:
    """A gateway for each of the databases, all on one Redis."""
    with ExitStack() as stack:
        started = {
            database: stack.enter_context(
                serving(url_of(server, database=database), services.redis_url, tmp_path)
            )
            for database in BOTH
        }
        for gateway in started.values():
            gateway.wait_until_ready()
        yield started


async def each(
    gateways: dict[str, Process],
    sent: dict[str, Parameters],
    send: Callable[[Process, Parameters], Awaitable[str]] = until_told,
) -> set[str]:
    """Return the outcomes of every callback at every gateway."""
    words = (send(gateway, sent[kind]) for gateway in gateways.values() for kind in sent)
    return set(await asyncio.gather(*words))


async def assert_written(
    server: Server, gateways: dict[str, Process], sent: dict[str, Parameters]
) -> None:
    """Fail unless each callback has one row in its database, as answered."""
    await each(gateways, sent)
    for database in gateways:
        for callback in sent.values():
            rows = await fetch_value(
                server,
                "SELECT count(*) FROM events WHERE user_id = $1",
                callback["user_id"],
                database=database,
            )
            assert rows == 1, (database, callback)


async def assert_seen(
    server: Server, gateways: dict[str, Process], sent: dict[str, Parameters]
) -> None:
    """Write the callbacks, and fail unless Redis has seen them then."""
    await assert_written(server, gateways, sent)
    assert await each(gateways, sent) == {"duplicate"}


async def test_snapshot_put_back_gets_its_missing_events(
    maker: Maker, server: Server, gateways: dict[str, Process]
) -> None:
    """After a snapshot was put back under a gateway, events that it lacks are written again."""
    before, after = callbacks("before-snapshot"), callbacks("after-snapshot")
    await assert_seen(server, gateways, before)
    snapshot = await asyncio.to_thread(maker.snapshot, server)
    await assert_seen(server, gateways, after)
    timeline = await fetch_value(server, TIMELINE)
    for _ in range(2):
        await asyncio.to_thread(maker.put_back, server, snapshot)
        assert await fetch_value(server, TIMELINE) == timeline
        await assert_seen(server, gateways, after)
        await assert_seen(server, gateways, before)


async def test_other_gateways_on_a_snapshot_write_again(
    maker: Maker, server: Server, services: Services, tmp_path: Path
) -> None:
    """Gateways that start on a snapshot and the same Redis write again, too."""
    sent = callbacks("other-gateways")
    snapshot = await asyncio.to_thread(maker.snapshot, server)
    for _ in range(2):
        with serving(url_of(server), services.redis_url, tmp_path) as gateway:
            gateway.wait_until_ready()
            await assert_seen(server, {HYPERTABLE: gateway}, sent)
        await asyncio.to_thread(maker.put_back, server, snapshot)


async def test_two_recoveries_of_one_backup_are_different_data(
    maker: Maker, server: Server, gateways: dict[str, Process]
) -> None:
    """Two recoveries from one backup have the same timeline, and are not taken for each other."""
    sent = callbacks("recovered")
    backup = await asyncio.to_thread(maker.base_backup, server)
    timelines = set()
    for _ in range(2):
        await asyncio.to_thread(maker.recover, server, backup)
        await until_primary(server)
        await assert_seen(server, gateways, sent)
        await execute(server, "CHECKPOINT")
        timelines.add(await fetch_value(server, TIMELINE))
    assert len(timelines) == 1


async def test_redis_is_made_to_forget(server: Server, gateways: dict[str, Process]) -> None:
    """Rows that were deleted by hand are written again, after the documented statement."""
    sent = callbacks("deleted")
    await assert_seen(server, gateways, sent)
    delete, forget = statements("Rows that were deleted by hand")
    for database in BOTH:
        await execute(server, delete.replace("ws_demo", "ws_test"), database=database)
    assert await each(gateways, sent, outcome) == {"duplicate"}  # so it is needed
    for database in BOTH:
        await execute(server, forget, database=database)
    await asyncio.sleep(FORGOTTEN_S)
    await assert_written(server, gateways, sent)


async def test_new_name_makes_redis_forget(server: Server, gateways: dict[str, Process]) -> None:
    """A new name by hand makes Redis forget where nothing else does: memory was restored too."""
    sent = callbacks("with-memory")
    await assert_seen(server, gateways, sent)
    [forget] = statements("A restored disk")
    for database in BOTH:
        await execute(server, "TRUNCATE events, stable_events", forget, database=database)
    await asyncio.sleep(FORGOTTEN_S)
    await assert_written(server, gateways, sent)
