"""Several replicas on one database: started at one moment on an empty one, which all migrate."""

import asyncio
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import unquote, urlsplit

import asyncpg
import pytest

from app.dev.embedded import EmbeddedError
from bench.testbed.pgbouncer import find_pgbouncer, pgbouncer
from bench.testbed.process import POLL_S, ROOT, inherited
from sinks.timescale.schema import _MIGRATION_LOCK, migrations
from tests.events import stored
from tests.gateways import Process, Services

REPLICAS = 3
PATIENCE_S = 60
USERS = [f"usr_{number}" for number in range(40)]
WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}


@pytest.fixture
async def empty(services: Services) -> AsyncIterator[str]:
    """The name of a database without our schema."""
    name = f"gateway_replicas_{os.getpid()}"
    await services.execute(None, f"CREATE DATABASE {name}")
    yield name
    await services.execute(None, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["direct", "through PgBouncer"])
def address(
    services: Services, empty: str, request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[str]:
    """The address of that database for the replicas."""
    server = urlsplit(services.database_url)
    if request.param == "direct":
        yield services.url_of(empty)
        return
    try:
        program = find_pgbouncer()
    except EmbeddedError as why:
        pytest.skip(str(why))
    user, password = unquote(server.username or ""), unquote(server.password or "")
    folder = tmp_path / "pgbouncer"
    with pgbouncer(program, folder, services.database_url, user, password) as bouncer:
        yield bouncer.url_of(empty)


async def migrate(environ: dict[str, str]) -> str:
    """Run `migrate` as a process, which must succeed, and return its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "migrate"),
        cwd=ROOT,
        env=inherited() | environ,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said
    return said.decode()


async def migrate_from_all(replicas: Sequence[Process], connection: asyncpg.Connection) -> str:
    """Migrate from as many places as there are replicas, and return their outputs.

    None of them connects before all are there, and each replica has answered.
    """
    await connection.execute(f"SELECT pg_advisory_lock({_MIGRATION_LOCK})")
    migrating = [asyncio.create_task(migrate(replica.environ)) for replica in replicas]
    for replica in replicas:
        while await asyncio.to_thread(replica.status, "/healthz") != 200:
            await asyncio.sleep(POLL_S)
        assert (await replica.callback()).status == 500
    waiting = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    while await connection.fetchval(waiting) < len(migrating):
        await asyncio.sleep(POLL_S)
    await connection.execute(f"SELECT pg_advisory_unlock({_MIGRATION_LOCK})")
    return "".join(await asyncio.gather(*migrating))


async def deliver(replica: Process, user: str, told: Counter[str]) -> None:
    """Send a callback as a vendor does, until it is answered 200; count the written ones."""
    while (answer := await replica.callback(user_id=user)).status != 200:
        told["5xx"] += 1
        await asyncio.sleep(POLL_S)
    told[user] += answer.json == WRITTEN


async def test_concurrent_replicas_apply_each_migration_once(
    services: Services, empty: str, address: str, tmp_path: Path
) -> None:
    """Each migration is applied once, and each event has one row, from any replica."""
    connection = await asyncpg.connect(services.url_of(empty))
    told: Counter[str] = Counter()
    with ExitStack() as stack:
        replicas = []
        for number in range(REPLICAS):
            (folder := tmp_path / f"{number}").mkdir()
            replicas.append(stack.enter_context(Process(address, services.redis_url, folder)))
        async with asyncio.timeout(PATIENCE_S):
            said = await migrate_from_all(replicas, connection)
            calls = (deliver(to, user, told) for user in USERS for to in (*replicas, *replicas))
            await asyncio.gather(*calls)
    assert said.count("applied ") == len(migrations())
    applied = await connection.fetch("SELECT name FROM schema_migrations ORDER BY name")
    assert [record[0] for record in applied] == list(migrations())
    assert await stored(connection) == set(USERS)
    assert max(told[user] for user in USERS) == 1
    # A callback answered 5xx may have been written.
    assert sum(told[user] for user in USERS) + told["5xx"] >= len(USERS)
    await connection.close()
