"""PostgreSQL servers on loopback: a primary and its synchronous standby, and copies of disks."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg

from app.dev.embedded import INIT_TIMEOUT_S, TIMESCALEDB_CONF
from app.dev.processes import ENVIRONMENT, Server, run
from app.dev.programs import Programs
from bench.testbed.process import PATIENCE_S, POLL_S, as_nobody
from sinks.timescale.schema import migrate
from tests.ports import free_port

PASSWORD = "the-servers-own"  # noqa: S105 - of servers that live for a test
OWNER, REPLICATOR = "flokit", "replicator"
# The databases of every server: `events` is a hypertable in one, an ordinary table in the other.
HYPERTABLE, PLAIN = "flokit", "plain"
CONNECT_TIMEOUT_S = 5.0
COPY_TIMEOUT_S = 60.0

# Servers crash here and machines do not, so nothing is lost without fsync, and each copy of a disk
# starts a second earlier. The rest makes servers small, and quick to find each other again.
CONF = """\
listen_addresses = '127.0.0.1'
fsync = off
unix_socket_directories = ''
max_connections = 60
shared_buffers = '32MB'
timezone = 'GMT'
log_timezone = 'GMT'
log_line_prefix = '%m [%p] %a '
jit = off
track_commit_timestamp = on
deadlock_timeout = '100ms'
min_wal_size = '8MB'
wal_keep_size = '64MB'
wal_retrieve_retry_interval = '100ms'
"""
NAMES = ("one", "two")
PAIR_CONF = f"{CONF}synchronous_standby_names = 'FIRST 1 ({', '.join(NAMES)})'\n"
# A new data directory has no standby yet, for any postgresql.conf.
FIRST_WORDS = f"""\
ALTER SYSTEM SET synchronous_standby_names = ''
CREATE ROLE {REPLICATOR} REPLICATION LOGIN PASSWORD '{PASSWORD}'
CREATE DATABASE {HYPERTABLE}
CREATE DATABASE {PLAIN}
"""
# The statements that make a server commit without a standby.
ALONE = ("ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()")
WAITING = """
SELECT pid FROM pg_stat_activity
WHERE wait_event = 'SyncRep' AND application_name = 'flokit-gateway'
"""
# Recovery to the end of the WAL that is in the backup, and a new timeline from there on.
RECOVERY_CONF = "restore_command = 'false'\n"


def url_of(*servers: Server, database: str = HYPERTABLE, user: str = OWNER, words: str = "") -> str:
    """The address of a database on any of these servers; `words` are its query."""
    hosts = ",".join(f"127.0.0.1:{server.port}" for server in servers)
    return f"postgresql://{user}:{PASSWORD}@{hosts}/{database}{words}"


@asynccontextmanager
async def asking(server: Server, database: str = HYPERTABLE) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection to a server, with all rights, that waits for no standby."""
    connection = await asyncpg.connect(
        url_of(server, database=database),
        timeout=CONNECT_TIMEOUT_S,
        server_settings={"synchronous_commit": "local", "application_name": "asking"},
    )
    try:
        yield connection
    finally:
        connection.terminate()


async def ask(server: Server, question: str, *words: Any, database: str = HYPERTABLE) -> Any:
    """Return the first value of a server's answer."""
    async with asking(server, database) as connection:
        return await connection.fetchval(question, *words)


async def tell(server: Server, *statements: str, database: str = HYPERTABLE) -> None:
    """Run statements on a server, each in a transaction of its own."""
    async with asking(server, database) as connection:
        for statement in statements:
            await connection.execute(statement)


async def until(condition: Callable[[], Awaitable[Any]]) -> Any:
    """Return the result of an awaited condition when it holds; servers may be away meanwhile."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                if found := await condition():
                    return found
            await asyncio.sleep(POLL_S)


async def until_primary(server: Server) -> None:
    """Return when a server takes writes."""
    await until(lambda: ask(server, "SELECT NOT pg_is_in_recovery()"))


async def until_waiting(server: Server) -> Sequence[int]:
    """Return the processes of gateways with commits that wait for a standby, once there are any."""
    async with asking(server) as connection, asyncio.timeout(PATIENCE_S):
        while not (found := await connection.fetch(WAITING)):
            await asyncio.sleep(POLL_S)
    return [record["pid"] for record in found]


@dataclass
class Maker:
    """Makes servers in one folder, and copies of their disks."""

    folder: Path
    programs: Programs
    _lock: int
    _spawner: ThreadPoolExecutor
    _stack: ExitStack

    def primary(self, name: str, conf: str = CONF) -> Server:
        """Start a new server, with both databases, migrated."""
        data = self.folder / name
        initdb = [self._bin("initdb"), f"-D{data}", f"-U{OWNER}", "-EUTF8", "--locale=C"]
        initdb += ["--wal-segsize=1", "--no-sync", "--auth=scram-sha-256"]
        password = self.folder / "password"
        password.write_text(PASSWORD)
        run(as_nobody([*initdb, f"--pwfile={password}"]), timeout_s=INIT_TIMEOUT_S)
        self._configure(name, conf)
        single = [self._bin("postgres"), "--single", f"-D{data}"]
        single += ["-csynchronous_standby_names=", "postgres"]
        run(as_nobody(single), timeout_s=INIT_TIMEOUT_S, stdin=FIRST_WORDS)
        server = self.started(name)
        asyncio.run(_migrate(server))
        return server

    def standby(self, name: str, primary: Server) -> Server:
        """Start a standby of a running primary."""
        self._follow(self.folder / name, primary)
        self._configure(name, PAIR_CONF)
        return self.started(name)

    def rejoin(self, server: Server, primary: Server) -> None:
        """Make a standby of a server in any role."""
        server.kill()
        shutil.rmtree(server.folder)
        self._follow(server.folder, primary)
        self._configure(server.name, PAIR_CONF)
        server.start()

    def base_backup(self, server: Server) -> Path:
        """Return a backup of a running server, good for any number of recoveries."""
        return self._back_up(self.folder / f"{server.name}.backup", server)

    def recover(self, server: Server, backup: Path) -> None:
        """Start a server anew on a backup, recovered to its end: on a timeline of its own."""
        server.kill()
        _copy(backup, server.folder)
        with (server.folder / "postgresql.auto.conf").open("a") as conf:
            conf.write(RECOVERY_CONF)
        (server.folder / "recovery.signal").touch()
        server.start()

    def snapshot(self, server: Server) -> Path:
        """Return a copy of the disk, as it would be after a crash now; the server goes on."""
        copy = self.folder / f"{server.name}.snapshot"
        server.pause()
        try:
            _copy(server.folder, copy)
        finally:
            server.resume()
        return copy

    def put_back(self, server: Server, snapshot: Path) -> None:
        """Crash a server, and start it on the disk as it was."""
        server.kill()
        _copy(snapshot, server.folder)
        server.start()

    def _bin(self, program: str) -> str:
        return str(self.programs.bin_folder / program)

    def _follow(self, data: Path, primary: Server) -> None:
        self._back_up(data, primary, "--write-recovery-conf")

    def _back_up(self, data: Path, server: Server, *words: str) -> Path:
        # Not `dbname`, which would keep a password out of the settings of the standby.
        base_backup = [self._bin("pg_basebackup"), f"--pgdata={data}", *words]
        base_backup += ["--checkpoint=fast", "--no-sync", f"--username={REPLICATOR}"]
        base_backup += ["--host=127.0.0.1", f"--port={server.port}"]
        environment = {**ENVIRONMENT, "PGPASSWORD": PASSWORD}
        run(as_nobody(base_backup), timeout_s=COPY_TIMEOUT_S, environment=environment)
        return data

    def _configure(self, name: str, conf: str) -> None:
        text = conf + (TIMESCALEDB_CONF if self.programs.has_timescaledb else "")
        # By its name a standby is known to the primary.
        (self.folder / name / "postgresql.conf").write_text(f"{text}cluster_name = '{name}'\n")

    def started(self, name: str) -> Server:
        """Start a server on the disk of this name; it is stopped with the others."""
        data, log = self.folder / name, self.folder / f"{name}.log"
        command = as_nobody([self._bin("postgres"), f"-D{data}", "-p"])
        server = Server(
            data, log, command, self._answers, signal.SIGINT, self._lock, self._spawner,
            free_port(),
        )  # fmt: skip
        return self._stack.enter_context(server)

    def _answers(self, port: int) -> bool:
        question = [self._bin("pg_isready"), "--quiet", "-h127.0.0.1", f"-p{port}"]
        return subprocess.run(question, env=ENVIRONMENT, check=False).returncode == 0


def _copy(disk: Path, to: Path) -> None:
    if to.exists():
        shutil.rmtree(to)
    # With its owner, and without the process ID of a crashed server, which is another's now.
    run(["cp", "--archive", str(disk), str(to)], timeout_s=COPY_TIMEOUT_S)
    (to / "postmaster.pid").unlink(missing_ok=True)


async def _migrate(server: Server) -> None:
    for database in (HYPERTABLE, PLAIN):
        async with asking(server, database) as connection:
            await migrate(connection)
    await tell(server, "DROP EXTENSION IF EXISTS timescaledb CASCADE", database=PLAIN)


@contextmanager
def making(folder: Path, programs: Programs) -> Iterator[Maker]:
    """Lend the maker of servers, and stop them all at the end."""
    with (
        (folder / "servers.lock").open("a") as lock,
        # A server gets a signal when the thread that started it ends: this one ends last.
        ThreadPoolExecutor(1) as spawner,
        ExitStack() as stack,
    ):
        yield Maker(folder, programs, lock.fileno(), spawner, stack)


@dataclass
class Pair:
    """A primary and a standby, without which it commits nothing: see `until_synchronous`."""

    maker: Maker
    primary: Server
    standby: Server
    has_failed_over: bool = False  # the standby has another history

    async def sync_state(self) -> str | None:
        """The primary's state of the standby: `sync`, or None while it does not stream."""
        state: str | None = await ask(
            self.primary,
            "SELECT max(sync_state) FROM pg_stat_replication "
            "WHERE application_name = $1 AND state = 'streaming'",
            self.standby.name,
        )
        return state

    async def until_synchronous(self) -> None:
        """Return when the standby has all that the primary has, and every commit waits for it."""

        async def is_synchronous() -> bool:
            return await self.sync_state() == "sync"

        await until(is_synchronous)
        here = await ask(self.primary, "SELECT pg_current_wal_lsn()::text")
        replayed = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
        await until(lambda: ask(self.standby, replayed, here))

    async def promote(self) -> None:
        """Make the standby the primary, which goes on alone; the other is left as it is."""
        await tell(self.standby, *ALONE)
        await self.promote_as_it_is()

    async def promote_as_it_is(self) -> None:
        """The same, but it waits for the standby in its settings, which is not there."""
        await tell(self.standby, "SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary
        self.has_failed_over = True
        await until_primary(self.primary)

    async def rejoin(self) -> None:
        """Make the one that is no primary any more a synchronous standby."""
        await asyncio.to_thread(self.maker.rejoin, self.standby, self.primary)
        self.has_failed_over = False
        await self.wait_for_standby()

    async def wait_for_standby(self) -> None:
        """From now on the primary commits nothing without its standby, and so after a promotion."""
        for server in (self.primary, self.standby):
            await tell(
                server, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"
            )
        await self.until_synchronous()

    async def mend(self) -> None:
        """Make it whole again, after any fault of either server."""
        self.primary.resume()
        await asyncio.to_thread(self.primary.start)
        if self.has_failed_over:
            await self.rejoin()
            return
        self.standby.resume()
        await asyncio.to_thread(self.standby.start)
        await self.wait_for_standby()


@contextmanager
def pair(folder: Path, programs: Programs) -> Iterator[Pair]:
    """Run a primary and its synchronous standby."""
    with making(folder, programs) as maker:
        primary = maker.primary(NAMES[0], PAIR_CONF)
        made = Pair(maker, primary, maker.standby(NAMES[1], primary))
        asyncio.run(made.wait_for_standby())
        yield made
