"""A synchronous standby that is not there: no row is answered for that no standby has."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.dev import embedded
from app.dev.embedded import Embedded, EmbeddedError
from app.event import Event, Outcome
from bench.testbed.pgbouncer import find_pgbouncer, pgbouncer
from bench.testbed.process import PATIENCE_S, POLL_S
from sinks.timescale import schema
from sinks.timescale.errors import NotReplicated
from sinks.timescale.quarantine import TimescaleQuarantine
from sinks.timescale.sink import TimescaleSink
from tests.drops import drop, rows_of
from tests.events import event, events, make_chunks, stored, write
from tests.gateways import environment
from tests.services.test_commands import run

WRITTEN, DUPLICATE, CONTESTED = Outcome.WRITTEN, Outcome.DUPLICATE, Outcome.CONTESTED
COMMIT_TIMEOUT_S = 60.0
WAITS = "SELECT pid, query_start FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
WAITING = f"{WAITS} AND application_name = 'flokit-gateway'"
pytestmark = pytest.mark.services


async def as_operator(url: str) -> asyncpg.Connection:
    """A connection with commits that wait for no standby."""
    return await asyncpg.connect(url, server_settings={"synchronous_commit": "local"})


async def commit_for_ever(connection: asyncpg.Connection) -> None:
    """Commit something, again and again."""
    while True:
        await connection.execute("SELECT pg_logical_emit_message(true, 'probe', '')")


@pytest.fixture(scope="module", params=[False, True], ids=["hypertable", "plain table"])
def servers(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Embedded]:
    """Servers of the module's own, with settings that it may change."""
    with embedded.start(tmp_path_factory.mktemp("own"), fallback=request.param) as servers:
        yield servers


class Server:
    """The database server, and whether its commits wait for a standby that does not exist."""

    def __init__(self, url: str, operator: asyncpg.Connection) -> None:
        self.url = url
        self.operator = operator

    async def reconnect(self) -> None:
        """Let the operator in again; its own writes wait for no standby."""
        self.operator = await as_operator(self.url)

    async def standbys(self, names: str) -> None:
        """Set the standbys that are waited for, and return when commits do."""
        await self.operator.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
        await self.operator.execute("SELECT pg_reload_conf()")
        if not names:
            return
        # One of the server's own processes decides for all, as soon as it has read the file.
        probe = await asyncpg.connect(self.url, server_settings={"synchronous_commit": "on"})
        committing = asyncio.create_task(commit_for_ever(probe))
        pid = probe.get_server_pid()
        async with asyncio.timeout(PATIENCE_S):
            while not await self.operator.fetchval(f"{WAITS} AND pid = {pid}"):
                await asyncio.sleep(POLL_S)
        await self.operator.execute(f"SELECT pg_terminate_backend({pid})")
        with pytest.raises(asyncpg.PostgresError):
            await committing
        await probe.close()

    async def waiting(self) -> None:
        """Return when a gateway's commit waits for a standby."""
        async with asyncio.timeout(PATIENCE_S):
            while await self.operator.fetchval(WAITING) is None:
                await asyncio.sleep(POLL_S)

    async def cut_short(
        self, writing: asyncio.Task[object], function: str = "pg_cancel_backend"
    ) -> None:
        """End each wait of a write's commits: its rows are visible then, and on no standby."""
        ended = set()
        async with asyncio.timeout(PATIENCE_S):
            while not writing.done():
                for waiting in await self.operator.fetch(WAITING):
                    # A second one would hit the next statement.
                    if waiting not in ended:
                        await self.operator.execute(f"SELECT {function}({waiting['pid']})")
                        ended.add(waiting)
                await asyncio.sleep(POLL_S)
        assert ended


@pytest.fixture
async def server(servers: Embedded) -> AsyncIterator[Server]:
    """A server with empty tables; its commits begin to wait at a test's command."""
    operator = await as_operator(servers.database_url)
    server = Server(servers.database_url, operator)
    await schema.migrate(operator)
    await make_chunks(operator)
    await operator.execute("DELETE FROM stable_events")
    yield server
    await server.standbys("")
    await server.operator.close()


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[TimescaleSink]:
    """A sink with patience, which is closed."""
    sink = TimescaleSink(url, commit_timeout_s=COMMIT_TIMEOUT_S)
    try:
        yield sink
    finally:
        await sink.close()


@pytest.fixture
async def sink(servers: Embedded, server: Server) -> AsyncIterator[TimescaleSink]:
    """A sink on it, connected."""
    del server
    async with opened(servers.database_url) as sink:
        await sink.ping()
        async with sink._contested:
            pass
        yield sink


async def until_waiting(
    server: Server, sink: TimescaleSink, *batch: Event, contested: bool = False
) -> None:
    """Fail unless a write of these waits for the standby; it is given up then."""
    writing = asyncio.create_task(write(sink, batch, contested=contested))
    await server.waiting()
    assert not writing.done()
    writing.cancel()
    await asyncio.wait([writing])
    async with asyncio.timeout(PATIENCE_S):
        while await server.operator.fetchval(WAITING):
            await asyncio.sleep(POLL_S)


@pytest.mark.parametrize("contested", [False, True])
@pytest.mark.parametrize("has_stable_id", [False, True])
async def test_row_that_no_standby_has_is_no_duplicate(
    server: Server, sink: TimescaleSink, has_stable_id: bool, contested: bool
) -> None:
    """A commit is given up and its row visible: the retry waits too, by COPY and by INSERT."""
    known = event("a", has_stable_id=has_stable_id)
    await sink.write([event("z")])  # the chunk is there
    await server.standbys("nobody")
    await until_waiting(server, sink, known, contested=contested)
    assert await stored(server.operator) == {"a", "z"}
    for again in (False, True):
        await until_waiting(server, sink, known, contested=again)
    await until_waiting(server, sink, known, event("b"))
    await server.standbys("")
    assert await write(sink, [known], contested=contested) == [DUPLICATE]


@pytest.mark.parametrize("contested", [False, True])
@pytest.mark.parametrize("has_stable_id", [False, True])
@pytest.mark.parametrize("function", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_cancelled_wait_is_an_unknown_outcome(
    server: Server, sink: TimescaleSink, has_stable_id: bool, contested: bool, function: str
) -> None:
    """An operator ends a commit's wait at COPY, INSERT or COMMIT: the outcome is unknown."""
    known = event("a", has_stable_id=has_stable_id)
    await server.standbys("nobody")
    for _ in range(2):  # the row is written, and then it is searched for
        writing = asyncio.create_task(write(sink, [known], contested=contested))
        await server.cut_short(writing, function)
        with pytest.raises((NotReplicated, asyncpg.PostgresConnectionError)):
            await writing
    assert await stored(server.operator) == {"a"}
    await server.standbys("")
    assert await write(sink, [known], contested=contested) == [DUPLICATE]


@pytest.mark.parametrize("contested", [False, True])
async def test_pooler_passes_the_warning_of_a_cancelled_wait(
    servers: Embedded, server: Server, tmp_path: Path, contested: bool
) -> None:
    """Through PgBouncer the server's warning comes in time too; so does a duplicate's wait."""
    try:
        program = find_pgbouncer()
    except EmbeddedError as why:
        pytest.skip(str(why))
    own = urlsplit(servers.database_url)
    assert own.username
    assert own.password
    folder = tmp_path / "pgbouncer"
    with pgbouncer(program, folder, servers.database_url, own.username, own.password) as bouncer:
        async with opened(bouncer.url_of("flokit")) as sink:
            await write(sink, events("z"), contested=contested)
            await server.standbys("nobody")
            for _ in range(2):  # the row is written, and then it is searched for
                writing = asyncio.create_task(write(sink, events("a"), contested=contested))
                await server.cut_short(writing)
                with pytest.raises(NotReplicated):
                    await writing
            await server.standbys("")
            assert await write(sink, events("a"), contested=contested) == [DUPLICATE]


async def test_drop_that_no_standby_has_is_not_reported_as_kept(
    servers: Embedded, server: Server
) -> None:
    """An operator ends the wait of a drop's commit: whether it is kept is unknown."""
    quarantine = TimescaleQuarantine(servers.database_url, commit_timeout_s=COMMIT_TIMEOUT_S)
    await quarantine.keep([drop()])
    await server.standbys("nobody")
    keeping = asyncio.create_task(quarantine.keep([drop()]))
    await server.cut_short(keeping)
    with pytest.raises(NotReplicated):
        await keeping
    assert await rows_of(server.operator) == 2
    await quarantine.close()


async def test_one_cancelled_wait_makes_the_batch_unknown(
    server: Server, sink: TimescaleSink
) -> None:
    """A batch that is searched row by row is unknown as a whole when one wait was cancelled."""
    await server.operator.execute("ALTER TABLE events ADD CONSTRAINT c CHECK (country <> 'XX')")
    await sink.write(events("a"))
    await server.standbys("nobody")
    batch = [*events("a", "b"), event("poison", country="XX")]
    writing = asyncio.create_task(sink.write(batch))
    await server.cut_short(writing)
    with pytest.raises(NotReplicated):
        await writing
    await server.operator.execute("ALTER TABLE events DROP CONSTRAINT c")


async def test_retry_waits_after_a_crash(
    servers: Embedded, server: Server, sink: TimescaleSink
) -> None:
    """The server crashes under a waiting commit: the row is there, and its retry waits again."""
    await server.standbys("nobody")
    writing = asyncio.create_task(sink.write(events("a")))
    await server.waiting()
    await asyncio.to_thread(servers.postgres.kill)
    with pytest.raises((asyncpg.PostgresError, OSError)):
        await writing
    await asyncio.to_thread(servers.postgres.start)
    await server.reconnect()
    assert await stored(server.operator) == {"a"}
    await until_waiting(server, sink, event("a"))


async def test_warning_of_a_trigger_is_no_cancelled_wait(
    server: Server, sink: TimescaleSink
) -> None:
    """A warning of the same SQLSTATE that a foreign trigger raises has no effect on a commit."""
    await server.operator.execute(
        "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING "
        "'canceling wait for synchronous replication'; RETURN NEW; END $$; CREATE TRIGGER warn "
        "BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION warn()"
    )
    for contested in (False, True):
        name = f"contested {contested}"
        assert await write(sink, events(name), contested=contested) == [WRITTEN]
        assert await write(sink, events(name), contested=contested) == [DUPLICATE]
    await server.operator.execute("DROP FUNCTION warn CASCADE")


SETTINGS = {
    "local": "synchronous_commit = 'local'",
    "remote_write": "synchronous_commit = 'remote_write'",
    "off": "synchronous_commit = 'off'",
    # Without it the server does not report that a wait was cancelled.
    "silent": "client_min_messages = 'error'",
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_commits_wait_under_any_setting(
    servers: Embedded, server: Server, setting: str, when: str
) -> None:
    """For any setting of role or server, before or after it connects, a gateway's commits wait."""
    name = setting.split(maxsplit=1)[0]
    async with opened(servers.database_url) as sink:
        if when == "before":
            await server.operator.execute(f"ALTER DATABASE flokit SET {setting}")
            await sink.ping()
        else:
            await sink.ping()
            await server.operator.execute(f"ALTER SYSTEM SET {setting}")
        await server.standbys("nobody")
        writing = asyncio.create_task(sink.write(events("a")))
        await server.cut_short(writing)
        with pytest.raises(NotReplicated):
            await writing
    await server.operator.execute(f"ALTER DATABASE flokit RESET {name}")
    await server.operator.execute(f"ALTER SYSTEM RESET {name}")


async def test_check_reports_that_no_standby_confirms(
    servers: Embedded, server: Server, tmp_path: Path
) -> None:
    """`check` reports whether standbys are configured, and that none of them is there."""
    environ = environment(servers.database_url, servers.redis_url, tmp_path)
    line = "database setting synchronous_standby_names:"
    ended = await asyncio.to_thread(run, "check", **environ)
    assert (ended.returncode, f"ok       {line} none" in ended.stdout) == (0, True)
    await server.standbys("nobody")
    ended = await asyncio.to_thread(run, "check", **environ)
    assert (ended.returncode, f"FAILED   {line} nobody: none of" in ended.stdout) == (1, True)
