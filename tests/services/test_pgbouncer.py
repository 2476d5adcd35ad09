"""Through a real PgBouncer in transaction mode: the same outcomes, and nothing left behind."""

import asyncio
import itertools
import os
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.claims.redis import Claims
from app.dev.embedded import EmbeddedError
from app.event import Outcome
from sinks.timescale.schema import _MIGRATION_LOCK
from sinks.timescale.sink import TimescaleSink
from tests.adversity import test_exactly_once, test_out_of_reach, test_poison
from tests.adversity.test_exactly_once import AlwaysHeld
from tests.adversity.test_poison import NO_XX
from tests.events import event, events, generation_of, stored
from tests.gateways import Gateways, Process, Services, environment
from tests.pgbouncer import BARE, DOCUMENTED, Arrangement, PgBouncer, find_pgbouncer, pgbouncer
from tests.services import test_timescale
from tests.services.test_commands import run

WRITTEN, DUPLICATE, REFUSED, CONTESTED = (
    Outcome.WRITTEN, Outcome.DUPLICATE, Outcome.REFUSED, Outcome.CONTESTED,
)  # fmt: skip
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def program() -> Path:
    """The PgBouncer to run."""
    try:
        return find_pgbouncer()
    except EmbeddedError as why:
        pytest.skip(str(why))


@pytest.fixture(params=[DOCUMENTED, BARE], ids=["documented", "bare"])
def arrangement(request: pytest.FixtureRequest) -> Arrangement:
    """How PgBouncer is set up."""
    arrangement: Arrangement = request.param
    return arrangement


@pytest.fixture
async def bouncer(
    services: Services, program: Path, tmp_path: Path, arrangement: Arrangement
) -> AsyncIterator[PgBouncer]:
    """A PgBouncer of the test's own, and a role of its own, which owns what the server's does."""
    role, password = f"gateway_role_{os.getpid()}_{next(_numbers)}", secrets.token_hex()
    owner = urlsplit(services.database_url).username
    await services.execute(
        None,
        f"CREATE ROLE {role} LOGIN PASSWORD '{password}'",
        f"GRANT {owner} TO {role}",
        *(line.replace("ROLE flokit", f"ROLE {role}") for line in arrangement.role),
    )
    folder = tmp_path / "pgbouncer"
    with pgbouncer(
        program, folder, services.database_url, role, password, **arrangement.settings
    ) as bouncer:
        yield bouncer
    await services.execute(None, f"DROP ROLE {role}")


@pytest.fixture
def database_url(database_url: str, bouncer: PgBouncer) -> str:
    """The test's database, behind PgBouncer."""
    return bouncer.url_of(urlsplit(database_url).path.strip("/"))


@pytest.fixture
async def connection(services: Services, database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to it, without PgBouncer."""
    connection = await asyncpg.connect(services.url_of(urlsplit(database_url).path.strip("/")))
    yield connection
    await connection.close()


@pytest.fixture
async def sink(database_url: str) -> AsyncIterator[TimescaleSink]:
    """The sink behind PgBouncer."""
    sink = TimescaleSink(database_url, commit_timeout_s=5)
    await sink.write([], contested=False)
    yield sink
    await sink.close()


# What holds on a direct connection holds behind a pooler.
test_every_column_arrives = test_timescale.test_every_column_arrives
test_duplicates_inside_a_batch = test_timescale.test_duplicates_inside_a_batch_of_new_ones
test_stable_id_under_another_time = test_timescale.test_stable_id_under_another_time
test_stable_id_without_its_row = test_timescale.test_stable_id_is_not_entered_without_its_row
test_twin_waits_for_the_other = test_timescale.test_twin_waits_for_the_other_to_commit
test_frozen_writer = test_timescale.test_frozen_writer_harms_only_its_twins
test_rebuilt_database_is_noticed = test_timescale.test_rebuilt_database_is_noticed
test_time_out = test_timescale.test_time_out_gives_the_connection_up
test_overlapping_writers = test_timescale.test_overlapping_writers_do_not_deadlock
test_no_encoding = test_poison.test_no_encoding_beside_a_stable_id
test_poison_beside_a_duplicate = test_poison.test_poison_beside_a_duplicate
test_schema_is_mended_meanwhile = test_poison.test_schema_is_mended_meanwhile
proxy = test_out_of_reach.proxy
test_cut_wire = test_out_of_reach.test_cut_wire
test_caller_that_hangs_up = test_exactly_once.test_caller_that_hangs_up_changes_nothing
test_poison_is_dropped = test_exactly_once.test_poison_is_dropped
test_repeats_share_a_failure = test_exactly_once.test_repeats_share_a_failure


async def write_in_every_way(sink: TimescaleSink, connection: asyncpg.Connection) -> None:
    """Copy, copy with stable IDs, search, insert, refuse, and give up on a lock."""
    await connection.execute(NO_XX)
    assert await sink.write(events("a", "b"), contested=False) == [WRITTEN, WRITTEN]
    stable = events("c", "d", has_stable_id=True)
    assert await sink.write(stable, contested=False) == [WRITTEN, WRITTEN]
    assert await sink.write(events("a", "e"), contested=False) == [DUPLICATE, WRITTEN]
    poison = event("poison", country="XX")
    assert await sink.write([poison, event("f")], contested=False) == [CONTESTED, WRITTEN]
    assert await sink.write([poison], contested=True) == [REFUSED]
    async with connection.transaction():
        await connection.execute("DELETE FROM events WHERE user_id = 'a'")
        assert await sink.write(events("a", "g"), contested=False) == [CONTESTED, WRITTEN]
        with pytest.raises(asyncpg.LockNotAvailableError):
            await sink.write(events("a"), contested=True)
    assert await sink.write(events("a"), contested=True) == [WRITTEN]
    assert await stored(connection) == set("abcdefg")


async def state_of(url: str) -> tuple[int, dict[str, str], int]:
    """What another client of the same pool finds on the only connection to the server."""
    client = await asyncpg.connect(url, statement_cache_size=0)
    pid = await client.fetchval("SELECT pg_backend_pid()")
    records = await client.fetch("SELECT name, setting FROM pg_settings")
    settings = {record["name"]: record["setting"] for record in records}
    prepared = await client.fetchval("SELECT count(*) FROM pg_prepared_statements")
    await client.close()
    return pid, settings, prepared


async def test_nothing_is_left_behind(
    bouncer: PgBouncer, database_url: str, connection: asyncpg.Connection
) -> None:
    """Whatever is written, in which way ever, the others find the connection as it was."""
    await bouncer.command("SET default_pool_size = 1")
    before = await state_of(database_url)
    sink = TimescaleSink(database_url, commit_timeout_s=5)
    await write_in_every_way(sink, connection)
    assert await state_of(database_url) == before
    await sink.close()


async def test_commits_are_durable_whatever_the_role_says(
    sink: TimescaleSink, connection: asyncpg.Connection, arrangement: Arrangement
) -> None:
    """No row is committed with synchronous_commit off, although the role may have it so."""
    await connection.execute(
        "CREATE TABLE commits (synchronous text, role text);"
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO commits "
        "VALUES (current_setting('synchronous_commit'), (SELECT reset_val FROM pg_settings "
        "WHERE name = 'synchronous_commit')); RETURN NEW; END $$;"
        "CREATE TRIGGER note BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION note()"
    )
    await write_in_every_way(sink, connection)
    found = await connection.fetch("SELECT DISTINCT synchronous, role FROM commits")
    assert [tuple(record) for record in found] == [("on", arrangement.synchronous_commit)]


async def until_sleeping(connection: asyncpg.Connection) -> int:
    """Return the process that has come to a `pg_sleep` in this database."""
    while True:
        pid = await connection.fetchval(
            "SELECT pid FROM pg_stat_activity "
            "WHERE wait_event = 'PgSleep' AND datname = current_database()"
        )
        if pid is not None:
            return int(pid)
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("lost", ["backend", "pooler"])
@pytest.mark.parametrize("contested", [False, True])
async def test_lost_pooler(
    bouncer: PgBouncer,
    sink: TimescaleSink,
    connection: asyncpg.Connection,
    lost: str,
    contested: bool,
) -> None:
    """A backend or a PgBouncer that ends in the middle of a write costs that write, and no more."""
    await connection.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN IF NEW.user_id = 'slow' THEN PERFORM pg_sleep(60); END IF; RETURN NEW; END $$;"
        "CREATE TRIGGER slow BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION slow()"
    )
    writing = asyncio.create_task(sink.write(events("slow"), contested=contested))
    async with asyncio.timeout(10):
        pid = await until_sleeping(connection)
    if lost == "pooler":
        bouncer.stop(signal.SIGKILL)
    await connection.execute("SELECT pg_terminate_backend($1)", pid)
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await writing
    if lost == "pooler":
        bouncer.start()
    assert await sink.write(events("a"), contested=contested) == [WRITTEN]
    assert await stored(connection) == {"a"}


async def test_frozen_gateway_lets_go(
    bouncer: PgBouncer, database_url: str, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """The role's time-out ends the transaction of a gateway that stands still, and frees a twin."""
    await connection.execute(
        f"ALTER ROLE {bouncer.role} SET idle_in_transaction_session_timeout = '700ms'"
    )
    await bouncer.command("RECONNECT")
    frozen = await asyncpg.connect(database_url)
    await frozen.execute("BEGIN")
    await test_timescale.insert(frozen, event("a"))
    with pytest.raises(asyncpg.LockNotAvailableError):
        await sink.write(events("a"), contested=True)
    async with asyncio.timeout(10):
        while not frozen.is_closed():
            await asyncio.sleep(0.02)
    assert await sink.write(events("a"), contested=True) == [WRITTEN]
    assert await stored(connection) == {"a"}


async def test_refused_batches_keep_a_connection(
    bouncer: PgBouncer, database_url: str, connection: asyncpg.Connection
) -> None:
    """After a batch that was refused for one of its rows, the server's connection is free again.

    PgBouncer keeps it after some of the COPYs that fail before all their rows have come.
    """
    await connection.execute(NO_XX)
    await bouncer.command("SET default_pool_size = 1")
    sink = TimescaleSink(database_url, commit_timeout_s=5)
    other = await asyncpg.connect(database_url, statement_cache_size=0)
    for number in range(100):
        batch = [event(f"bad {number}", country="XX"), event(f"{number}")]
        assert await sink.write(batch, contested=False) == [CONTESTED, WRITTEN]
        async with asyncio.timeout(3):
            await other.execute("SELECT 1")
    assert len(await stored(connection)) == 100
    await other.close()
    await sink.close()


async def test_other_data_behind_the_pooler(
    services: Services, bouncer: PgBouncer, template: str, connection: asyncpg.Connection
) -> None:
    """When PgBouncer is led to another database, the open connection has another name for it."""
    first = await connection.fetchval("SELECT current_database()")
    second = f"{first}_other"
    await services.execute(None, f"CREATE DATABASE {second} TEMPLATE {template}")
    other = await asyncpg.connect(services.url_of(second))
    bouncer.configure(led=first)
    await bouncer.command("RELOAD")
    sink = TimescaleSink(bouncer.url_of("led"), commit_timeout_s=5)
    assert await sink.write(events("a"), contested=False) == [WRITTEN]
    assert sink.generation == await generation_of(connection)
    bouncer.configure(led=second)
    await bouncer.command("RELOAD")
    async with asyncio.timeout(10):
        while sink.generation != await generation_of(other):
            await asyncio.sleep(0.02)
    assert await sink.write(events("a", "b"), contested=False) == [WRITTEN, WRITTEN]
    assert (await stored(connection), await stored(other)) == ({"a"}, {"a", "b"})
    await sink.close()
    await other.close()
    await services.execute(None, f"DROP DATABASE {second} WITH (FORCE)")


@pytest.mark.parametrize("store", [None, AlwaysHeld()], ids=["redis", "held"])
async def test_few_connections_for_many_gateways(
    bouncer: PgBouncer, gateways: Gateways, connection: asyncpg.Connection, store: Claims | None
) -> None:
    """Six lanes of three gateways take turns on two connections, and each event has one row."""
    await bouncer.command("SET default_pool_size = 2")
    running = [await gateways.start(claims=store) for _ in range(3)]
    users = [f"u{number}" for number in range(30)]
    answers = await asyncio.gather(
        *(
            gateway.callback(user_id=user, **({"transaction_id": user} if user < "u2" else {}))
            for user in users
            for gateway in (*running, *running)
        )
    )
    told = Counter(answer.body for answer in answers)
    assert sorted(told.values()) == [len(users), 5 * len(users)]
    assert {answer.status for answer in answers} == {200}
    assert await stored(connection) == set(users)
    backends = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE application_name = 'flokit-gateway' AND datname = current_database()"
    )
    assert backends <= 2


# The commands


@pytest.fixture
def environ(services: Services, database_url: str, tmp_path: Path) -> Mapping[str, str]:
    """The environment of a command."""
    return environment(database_url, services.redis_url, tmp_path, RETENTION_D="62")


async def test_the_role_lacks_settings(
    bouncer: PgBouncer,
    arrangement: Arrangement,
    environ: Mapping[str, str],
    connection: asyncpg.Connection,
) -> None:
    """Behind a pooler `check` tells each missing one with what mends it, and then all is well."""
    ended = await asyncio.to_thread(run, "check", **environ)
    assert "ok       pooler: " in ended.stdout
    lines = [line.partition(" ALTER ROLE ") for line in ended.stdout.splitlines()]
    told = {f"ALTER ROLE {mend}": said for said, _, mend in lines if mend}
    if arrangement == DOCUMENTED:
        assert (ended.returncode, told) == (0, {})
        return
    assert (ended.returncode, list(told)) == (1, bouncer.role_settings())
    assert all(said.startswith("FAILED   role setting ") for said in told.values())
    for mend in (*told, f"ALTER ROLE {bouncer.role} RESET synchronous_commit"):
        await connection.execute(mend)
    await bouncer.command("RECONNECT")
    for _ in range(2):  # the second one finds what the first has left on the same connection
        ended = await asyncio.to_thread(run, "check", **environ)
        assert (ended.returncode, "FAILED" in ended.stdout) == (0, False)


async def test_gateway_whose_role_lacks_settings(
    services: Services,
    bouncer: PgBouncer,
    arrangement: Arrangement,
    database_url: str,
    tmp_path: Path,
) -> None:
    """A gateway behind a pooler says at its start what the role lacks, and writes all the same."""
    with Process(database_url, services.redis_url, tmp_path) as process:
        process.wait_until_ready()
        assert (await process.callback()).status == 200
    log = process.log.read_text()
    told = [line for line in bouncer.role_settings() if line in log]
    assert told == ([] if arrangement == DOCUMENTED else bouncer.role_settings())


IS_IN_SOMEBODYS_WAY = """
SELECT EXISTS (
    SELECT FROM pg_locks WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))
    AND clock_timestamp() - waitstart > interval '400 ms'
)
"""
# What holds a command up, and what it says in the end.
HELD_UP = {
    "migrate": (f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})", "up to date"),
    "retain": ("SELECT FROM stable_events FOR UPDATE", "stable_events: 1 rows deleted"),
}


@pytest.mark.parametrize("command", HELD_UP)
async def test_command_is_cut_short(
    bouncer: PgBouncer, environ: Mapping[str, str], connection: asyncpg.Connection, command: str
) -> None:
    """A command waits for others, also where the time-outs of the gateway's role are short."""
    for name in ("lock_timeout", "statement_timeout"):
        await connection.execute(f"ALTER ROLE {bouncer.role} SET {name} = '200ms'")
    await connection.execute(
        "INSERT INTO stable_events VALUES (gen_random_uuid(), now() - interval '90 days')"
    )
    lock, said = HELD_UP[command]
    async with connection.transaction():
        await connection.execute(lock)
        running = asyncio.create_task(asyncio.to_thread(run, command, **environ))
        async with asyncio.timeout(10):
            while not await connection.fetchval(IS_IN_SOMEBODYS_WAY):
                await asyncio.sleep(0.01)
    ended = await running
    assert (ended.returncode, ended.stderr) == (0, "")
    assert said in ended.stdout
