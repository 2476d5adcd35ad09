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

from app.claims import Claims
from app.dev.embedded import EmbeddedError
from app.event import Outcome
from bench.testbed.pgbouncer import (
    BARE,
    DOCUMENTED,
    Arrangement,
    PgBouncer,
    find_pgbouncer,
    pgbouncer,
)
from bench.testbed.process import PATIENCE_S
from sinks.timescale.schema import _MIGRATION_LOCK
from sinks.timescale.sink import TimescaleSink
from tests.adversity import test_exactly_once, test_out_of_reach, test_poison, test_replay_faults
from tests.adversity.test_exactly_once import AlwaysHeld
from tests.adversity.test_poison import NO_XX
from tests.events import event, events, generation_of, stored, write
from tests.gateways import Gateways, Process, Services, environment
from tests.services import test_quarantine_store, test_replay, test_timescale
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
    """The configuration of PgBouncer."""
    arrangement: Arrangement = request.param
    return arrangement


@pytest.fixture
async def bouncer(
    services: Services, program: Path, tmp_path: Path, arrangement: Arrangement
) -> AsyncIterator[PgBouncer]:
    """A PgBouncer of the test's own, and a role of its own, which owns the server's objects."""
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
async def database_url(
    services: Services, database_url: str, bouncer: PgBouncer
) -> AsyncIterator[str]:
    """The test's database, behind PgBouncer."""
    name = urlsplit(database_url).path.strip("/")
    yield bouncer.url_of(name)
    await services.execute(name, f"DROP OWNED BY {bouncer.role} CASCADE")


@pytest.fixture
async def connection(services: Services, database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to it, without PgBouncer."""
    connection = await asyncpg.connect(services.url_of(urlsplit(database_url).path.strip("/")))
    yield connection
    await connection.close()


# These tests of a direct connection hold behind a pooler too.
test_every_column_arrives = test_timescale.test_every_column_arrives
test_duplicates_cost_new_events_nothing = test_timescale.test_duplicates_cost_new_events_nothing
test_stable_id_is_a_duplicate = test_timescale.test_stable_id_at_another_time_is_a_duplicate
test_stable_id_needs_its_row = test_timescale.test_stable_id_is_not_entered_without_its_row
test_contested_event_waits = test_timescale.test_contested_event_waits_for_the_other_commit
test_frozen_writer_delays_few = test_timescale.test_frozen_writer_delays_only_contested_events
test_rebuilt_database_is_noticed = test_timescale.test_rebuilt_database_is_noticed
test_time_out_gives_the_connection_up = test_timescale.test_time_out_gives_the_connection_up
test_overlapping_writers_do_not_deadlock = test_timescale.test_overlapping_writers_do_not_deadlock
test_no_encoding_harms_no_neighbour = test_poison.test_event_without_an_encoding_harms_no_neighbour
test_poison_is_refused_alone = test_poison.test_poison_beside_a_duplicate_is_refused_alone
test_schema_refuses_no_event = test_poison.test_event_is_not_refused_for_a_fault_of_the_schema
quarantine = test_quarantine_store.quarantine
test_drops_arrive = test_quarantine_store.test_every_column_arrives
test_rejected_requests_are_capped = test_quarantine_store.test_rejected_requests_are_capped
test_dry_run_reports_what_the_replay_does = test_replay.test_dry_run_reports_what_the_replay_does
test_two_replays_share_the_work = test_replay_faults.test_two_replays_at_once_share_the_work
proxy = test_out_of_reach.proxy
test_cut_wire_fails_the_write_in_time = test_out_of_reach.test_cut_wire_fails_the_write_in_time
test_hanging_up_changes_nothing = test_exactly_once.test_caller_that_hangs_up_changes_nothing
test_poison_is_dropped = test_exactly_once.test_poison_is_dropped
test_repeats_share_a_failure = test_exactly_once.test_repeats_share_a_failure


async def write_in_every_way(sink: TimescaleSink, connection: asyncpg.Connection) -> None:
    """Copy, copy with stable IDs, search, insert, refuse, and give up on a lock."""
    await connection.execute(NO_XX)
    assert await sink.write(events("a", "b")) == [WRITTEN, WRITTEN]
    stable = events("c", "d", has_stable_id=True)
    assert await sink.write(stable) == [WRITTEN, WRITTEN]
    assert await sink.write(events("a", "e")) == [DUPLICATE, WRITTEN]
    poison = event("poison", country="XX")
    assert await sink.write([poison, event("f")]) == [CONTESTED, WRITTEN]
    assert await sink.write_contested(poison) == REFUSED
    async with connection.transaction():
        await connection.execute("DELETE FROM events WHERE user_id = 'a'")
        assert await sink.write(events("a", "g")) == [CONTESTED, WRITTEN]
        with pytest.raises(asyncpg.LockNotAvailableError):
            await sink.write_contested(event("a"))
    assert await sink.write_contested(event("a")) == WRITTEN
    assert await stored(connection) == set("abcdefg")


async def state_of(url: str) -> tuple[int, dict[str, str], int]:
    """The state that another client of the same pool finds on the only server connection."""
    client = await asyncpg.connect(url, statement_cache_size=0)
    pid = await client.fetchval("SELECT pg_backend_pid()")
    records = await client.fetch("SELECT name, setting FROM pg_settings")
    settings = {record["name"]: record["setting"] for record in records}
    prepared = await client.fetchval("SELECT count(*) FROM pg_prepared_statements")
    await client.close()
    return pid, settings, prepared


async def test_writes_leave_the_connection_unchanged(
    bouncer: PgBouncer, database_url: str, connection: asyncpg.Connection
) -> None:
    """After any kind of write, the other clients find the connection as it was."""
    await bouncer.command("SET default_pool_size = 1")
    before = await state_of(database_url)
    sink = TimescaleSink(database_url, commit_timeout_s=5)
    await write_in_every_way(sink, connection)
    assert await state_of(database_url) == before
    await sink.close()


async def test_commits_are_durable_under_any_role(
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
async def test_lost_pooler_costs_one_write(
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
    writing = asyncio.create_task(write(sink, events("slow"), contested=contested))
    async with asyncio.timeout(PATIENCE_S):
        pid = await until_sleeping(connection)
    if lost == "pooler":
        bouncer.stop(signal.SIGKILL)
    await connection.execute("SELECT pg_terminate_backend($1)", pid)
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await writing
    if lost == "pooler":
        await bouncer.start_ready()
    assert await write(sink, events("a"), contested=contested) == [WRITTEN]
    assert await stored(connection) == {"a"}


async def test_frozen_gateway_releases_its_locks(
    bouncer: PgBouncer, database_url: str, sink: TimescaleSink, connection: asyncpg.Connection
) -> None:
    """The role's time-out ends the transaction of a frozen gateway, and frees its event."""
    await connection.execute(
        f"ALTER ROLE {bouncer.role} SET idle_in_transaction_session_timeout = '700ms'"
    )
    await bouncer.command("RECONNECT")
    frozen = await asyncpg.connect(database_url)
    await frozen.execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = 0")
    await test_timescale.insert(frozen, event("a"))
    with pytest.raises(asyncpg.LockNotAvailableError):
        await sink.write_contested(event("a"))
    # From here on it is frozen: its time runs as the role has it.
    await frozen.execute("SET LOCAL idle_in_transaction_session_timeout TO DEFAULT")
    async with asyncio.timeout(PATIENCE_S):
        while not frozen.is_closed():
            await asyncio.sleep(0.02)
    assert await sink.write_contested(event("a")) == WRITTEN
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
        assert await sink.write(batch) == [CONTESTED, WRITTEN]
        async with asyncio.timeout(PATIENCE_S):
            await other.execute("SELECT 1")
    assert len(await stored(connection)) == 100
    await other.close()
    await sink.close()


async def test_other_data_behind_the_pooler_is_noticed(
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
    assert await sink.write(events("a")) == [WRITTEN]
    assert sink.generation == await generation_of(connection)
    bouncer.configure(led=second)
    await bouncer.command("RELOAD")
    async with asyncio.timeout(PATIENCE_S):
        while sink.generation != await generation_of(other):
            await asyncio.sleep(0.02)
    assert await sink.write(events("a", "b")) == [WRITTEN, WRITTEN]
    assert (await stored(connection), await stored(other)) == ({"a"}, {"a", "b"})
    await sink.close()
    await other.close()
    await services.execute(None, f"DROP DATABASE {second} WITH (FORCE)")


@pytest.mark.parametrize("store", [None, AlwaysHeld()], ids=["redis", "held"])
async def test_many_gateways_share_few_connections(
    bouncer: PgBouncer, gateways: Gateways, connection: asyncpg.Connection, store: Claims | None
) -> None:
    """Nine connections of three gateways share two to the server, and each event has one row."""
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


async def test_check_reports_missing_settings_of_the_role(
    bouncer: PgBouncer,
    arrangement: Arrangement,
    environ: Mapping[str, str],
    connection: asyncpg.Connection,
) -> None:
    """Behind a pooler `check` reports each missing setting with its remedy, then all is well."""
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
    for _ in range(
        2
    ):  # the second one finds the settings that the first has left on the same connection
        ended = await asyncio.to_thread(run, "check", **environ)
        assert (ended.returncode, "FAILED" in ended.stdout) == (0, False)


async def test_gateway_warns_of_missing_settings_of_the_role(
    services: Services,
    bouncer: PgBouncer,
    arrangement: Arrangement,
    database_url: str,
    tmp_path: Path,
) -> None:
    """A gateway behind a pooler logs the missing settings at its start, and writes all the same."""
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
# The statement that holds a command up, and its last line.
HELD_UP = {
    "migrate": (f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})", "up to date"),
    "retain": ("SELECT FROM stable_events FOR UPDATE", "stable_events: 1 rows deleted"),
}


@pytest.mark.parametrize("command", HELD_UP)
async def test_command_is_not_cut_short(
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
        async with asyncio.timeout(PATIENCE_S):
            while not await connection.fetchval(IS_IN_SOMEBODYS_WAY):
                await asyncio.sleep(0.01)
    ended = await running
    assert (ended.returncode, ended.stderr) == (0, "")
    assert said in ended.stdout
