"""PostgreSQL servers on loopback, their standbys, and copies of their disks."""

import asyncio
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from app.dev.embedded import INIT_TIMEOUT_S, TIMESCALEDB_CONF
from app.dev.processes import ENVIRONMENT, Server, run
from app.dev.programs import Programs
from bench.testbed.ports import free_port
from bench.testbed.process import as_nobody
from bench.topologies.servers import (
    HYPERTABLE,
    OWNER,
    PASSWORD,
    PLAIN,
    REPLICATOR,
    execute,
    superuser_connection,
)
from sinks.timescale.schema import migrate

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
wal_log_hints = on
# pg_rewind reads the WAL back to the last checkpoint that both servers have.
wal_keep_size = '256MB'
checkpoint_timeout = '30s'
wal_retrieve_retry_interval = '100ms'
"""
# Of a pair, whose servers take turns.
NAMES = ("one", "two")
PAIR_CONF = f"{CONF}synchronous_standby_names = 'FIRST 1 ({', '.join(NAMES)})'\n"
# A new data directory has no standby yet, for any postgresql.conf.
FIRST_WORDS = f"""\
ALTER SYSTEM SET synchronous_standby_names = ''
CREATE ROLE {REPLICATOR} REPLICATION LOGIN PASSWORD '{PASSWORD}'
CREATE DATABASE {HYPERTABLE}
CREATE DATABASE {PLAIN}
"""
# Recovery to the end of the WAL that is in the backup, and a new timeline from there on.
RECOVERY_CONF = "restore_command = 'false'\n"


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
        self._copy_of(self.folder / name, primary)
        self._configure(name, PAIR_CONF)
        return self.started(name)

    def rejoin(self, server: Server, primary: Server) -> None:
        """Make a standby of a server in any role."""
        server.kill()
        self._copy_of(server.folder, primary)
        self._configure(server.name, PAIR_CONF)
        server.start()

    def rewind(self, server: Server, primary: Server) -> None:
        """Make a standby of a former primary: its disk is kept, but for the other history."""
        server.kill()
        source = f"host=127.0.0.1 port={primary.port} user={OWNER} dbname=postgres"
        pg_rewind = [self._bin("pg_rewind"), f"--target-pgdata={server.folder}", "--no-sync"]
        pg_rewind += [f"--source-server={source} password={PASSWORD}"]
        run(as_nobody(pg_rewind), timeout_s=COPY_TIMEOUT_S)
        # The files of settings are the new primary's now.
        self._configure(server.name, PAIR_CONF)
        self.follow(server, primary)

    def follow(self, server: Server, primary: Server) -> None:
        """Start a server as a standby, on a disk that is behind the primary's."""
        (server.folder / "postgresql.auto.conf").write_text(
            f"primary_conninfo = 'host=127.0.0.1 port={primary.port} user={REPLICATOR} "
            f"password={PASSWORD}'\n"
        )
        (server.folder / "standby.signal").touch()
        server.start()

    def base_backup(self, server: Server) -> Path:
        """Return a backup of a running server, good for any number of recoveries."""
        return self._back_up(self.folder / f"{server.name}.backup", server)

    def recover(self, server: Server, backup: Path, conf: str = RECOVERY_CONF) -> None:
        """Start a server anew on a backup, by default recovered to the end of the backup.

        The recovered server is on a timeline of its own.
        """
        server.kill()
        _copy(backup, server.folder)
        with (server.folder / "postgresql.auto.conf").open("a") as file:
            file.write(conf)
        (server.folder / "recovery.signal").touch()
        server.start()

    def recover_until(self, server: Server, backup: Path, moment: datetime) -> None:
        """Recover a killed server from a backup to a moment, with the WAL on its disk."""
        wal = self.folder / f"{server.name}.wal"
        _copy(server.folder / "pg_wal", wal)
        self.recover(
            server,
            backup,
            f"restore_command = 'cp {wal}/%f %p'\n"
            f"recovery_target_time = '{moment:%Y-%m-%d %H:%M:%S.%f}+00'\n"
            "recovery_target_action = 'promote'\n",
        )

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

    def _copy_of(self, data: Path, primary: Server) -> None:
        self._back_up(data, primary, "--write-recovery-conf")

    def _back_up(self, data: Path, server: Server, *words: str) -> Path:
        shutil.rmtree(data, ignore_errors=True)
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
        async with superuser_connection(server, database) as connection:
            await migrate(connection)
    await execute(server, "DROP EXTENSION IF EXISTS timescaledb CASCADE", database=PLAIN)


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
