"""A private TimescaleDB and Redis, for `dev`, the tests and the bench.

Both listen on 127.0.0.1 only, keep their data in one folder, and end with the process that started
them, even when that is killed.
"""

import fcntl
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.dev.processes import ENVIRONMENT, POLL_S, EmbeddedError, Server, run
from app.dev.programs import Programs, find, unpack

__all__ = ["Embedded", "EmbeddedError", "Server", "start", "unpack"]

INIT_TIMEOUT_S = 120
LEFTOVERS_TIMEOUT_S = 10
KILLED_TIMEOUT_S = 30

# fsync, synchronous_commit and autovacuum are on by default. There is no Unix socket, whose path is
# limited to 107 bytes. GMT is UTC on hosts without time zone files too.
POSTGRES_CONF = """\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
timezone = 'GMT'
log_timezone = 'GMT'
log_line_prefix = '%m [%p] %a '
jit = off
track_commit_timestamp = on
tcp_keepalives_idle = 5
tcp_keepalives_interval = 5
tcp_keepalives_count = 3
"""
TIMESCALEDB_CONF = """\
shared_preload_libraries = 'timescaledb'
timescaledb.telemetry_level = off
timescaledb.max_background_workers = 4
"""
REDIS_CONF = """\
bind 127.0.0.1
save 60 1
maxmemory-policy noeviction
"""


@dataclass(frozen=True)
class Embedded:
    """The two servers, while they run."""

    database_url: str
    redis_url: str
    description: str  # programs, versions and origin, in one line
    has_timescaledb: bool
    psql: Path  # of the server's version
    postgres: Server
    redis: Server


@contextmanager
def start(folder: Path, *, fallback: bool = False) -> Iterator[Embedded]:
    """Run both servers on the data in `folder`, and stop them at the end.

    The folder is created when it is missing, and may be deleted between runs. `fallback` chooses
    the servers without TimescaleDB, which have a data folder of their own. Under root the servers
    run as the owner of the folder's parent, or else as `nobody`, and own the folder. Raises
    `EmbeddedError`, also when another process uses the folder.
    """
    programs = find(fallback=fallback)
    folder = folder.absolute()
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(_locked(folder))
            # PDEATHSIG is sent at the end of the *thread* that started a server.
            spawner = stack.enter_context(ThreadPoolExecutor(1, "embedded"))
            home = _Home(folder, lock, spawner)
            redis, postgres = _redis(programs, home), _postgres(programs, home)
        except OSError as error:
            raise EmbeddedError(f"{folder} cannot be used: {error}") from None
        with redis, postgres:
            yield Embedded(
                f"postgresql://flokit:{home.password}@127.0.0.1:{postgres.port}/flokit",
                f"redis://:{home.password}@127.0.0.1:{redis.port}/0",
                programs.description,
                programs.has_timescaledb,
                programs.bin_folder / "psql",
                postgres,
                redis,
            )


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Lock the folder; yields the descriptor of a locked file that the servers inherit.

    The second lock is free when the last process of earlier servers has ended: all of their lock
    files are stale.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (
        (folder / "owner.lock").open("a+") as owner,
        (folder / "servers.lock").open("a") as servers,
    ):
        owner.seek(0)
        if not _try_lock(owner.fileno()):
            raise EmbeddedError(f"already running as process {owner.read()} in {folder}")
        owner.truncate(0)
        owner.write(str(os.getpid()))
        owner.flush()
        # The servers of a killed owner are shutting down, unless they hang.
        kill_at = time.monotonic() + LEFTOVERS_TIMEOUT_S
        while not _try_lock(servers.fileno()):
            if time.monotonic() > kill_at:
                _kill_leftovers(folder / "servers.lock")
            if time.monotonic() > kill_at + KILLED_TIMEOUT_S:
                raise EmbeddedError(f"servers of an earlier run do not end in {folder}")
            time.sleep(POLL_S)
        yield servers.fileno()


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _kill_leftovers(lock: Path) -> None:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile, or of another user
            is_server = (process / "exe").readlink().name in ("postgres", "redis-server")
            if is_server and any(map(lock.samefile, (process / "fd").iterdir())):
                os.kill(int(process.name), signal.SIGKILL)


class _Home:
    """The folder of the servers, and the account under which they run."""

    def __init__(self, folder: Path, lock: int, spawner: Executor) -> None:
        self.folder, self._lock, self._spawner = folder, lock, spawner
        self._account: pwd.struct_passwd | None = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self._account = pwd.getpwnam("nobody")
            with suppress(KeyError):  # initdb refuses an account without a name
                owner = pwd.getpwuid(folder.parent.stat().st_uid)
                self._account = owner if owner.pw_uid else self._account
        for path in (folder, folder / "owner.lock", folder / "servers.lock"):
            self._own(path)
        self.password = self._read_password()

    def make(self, folder: Path) -> None:
        """Create a folder that only the servers may enter."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._own(folder)

    def write(self, path: Path, text: str) -> None:
        """Write a file that only the servers may read."""
        path.touch(mode=0o600)
        path.write_text(text)
        self._own(path)

    def _own(self, path: Path) -> None:
        if self._account:
            uid, gid = self._account.pw_uid, self._account.pw_gid
            os.chown(path, uid, gid, follow_symlinks=False)

    def _read_password(self) -> str:
        """Return the password of both servers, a new one in a new folder.

        Every user of the machine can connect to loopback, and under root the servers can read and
        write every file.
        """
        path = self.folder / "password"
        if path.exists() and (password := path.read_text()):
            return password
        password = secrets.token_hex(16)
        self.write(path, password)
        return password

    def run(self, command: list[str], stdin: str = "") -> None:
        """Run a program of PostgreSQL to its end, under the servers' account."""
        run(self._bound(command, signal.SIGKILL), timeout_s=INIT_TIMEOUT_S, stdin=stdin)

    def server(
        self,
        folder: Path,
        command: list[str],
        stop_signal: signal.Signals,
        is_ready: Callable[[int], bool],
    ) -> Server:
        """Return a server that runs in this folder, with its log beside it."""
        log = folder.with_name(f"{folder.name}.log")
        self.write(log, "")
        bound = self._bound(command, stop_signal)
        return Server(folder, log, bound, is_ready, stop_signal, self._lock, self._spawner)

    def _bound(self, command: list[str], death_signal: signal.Signals) -> list[str]:
        """Return the command under the servers' account, with a signal for our own death."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:  # macOS
            if self._account:
                raise EmbeddedError("root needs setpriv here, since PostgreSQL refuses root")
            return command
        words = [setpriv, f"--pdeathsig={death_signal.name}"]
        if self._account:
            words += [f"--reuid={self._account.pw_uid}", f"--regid={self._account.pw_gid}"]
            # Programs and data may lie in a folder of root's, such as /root. The securebit makes
            # access(2), with which PostgreSQL looks for its programs, respect the capability.
            words += ["--clear-groups", "--securebits=+no_setuid_fixup"]
            words += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return words + command


def _postgres(programs: Programs, home: _Home) -> Server:
    name = f"postgresql-{programs.postgres_version.split('.')[0]}"
    data = home.folder / (f"{name}-timescaledb" if programs.has_timescaledb else name)
    if not data.exists():
        _init_postgres(programs.bin_folder, home, data)
    conf = POSTGRES_CONF + TIMESCALEDB_CONF if programs.has_timescaledb else POSTGRES_CONF
    home.write(data / "postgresql.conf", conf)
    # After a crash it names a process ID that may be another process's by now.
    (data / "postmaster.pid").unlink(missing_ok=True)

    def is_ready(port: int) -> bool:
        # PostgreSQL accepts connections before it is ready.
        probe = [str(programs.bin_folder / "pg_isready"), "--quiet", "-h127.0.0.1", f"-p{port}"]
        return subprocess.run(probe, env=ENVIRONMENT, check=False).returncode == 0

    command = [str(programs.bin_folder / "postgres"), f"-D{data}", "-p"]
    return home.server(data, command, signal.SIGINT, is_ready)


def _init_postgres(bin_folder: Path, home: _Home, data: Path) -> None:
    """Create a data folder with a database `flokit`; `data` is complete or absent."""
    new = data.with_name(f"{data.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    home.make(new)
    initdb = [str(bin_folder / "initdb"), f"-D{new}", "-Uflokit", "-EUTF8", "--locale=C"]
    # PostgreSQL's own C.UTF-8, which the host may lack.
    initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    initdb += ["--auth=scram-sha-256", f"--pwfile={home.folder / 'password'}"]
    home.run(initdb)
    single_user = [str(bin_folder / "postgres"), "--single", f"-D{new}", "postgres"]
    home.run(single_user, "CREATE DATABASE flokit\n")
    new.rename(data)


def _redis(programs: Programs, home: _Home) -> Server:
    # An older Redis cannot read the file of a newer one.
    folder = home.folder / f"redis-{programs.redis_version.split('.')[0]}"
    home.make(folder)
    home.write(folder / "redis.conf", f"{REDIS_CONF}requirepass {home.password}\n")

    def is_ready(port: int) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=3) as peer:
            peer.sendall(f"AUTH {home.password}\r\nPING\r\n".encode())
            return b"+PONG" in peer.recv(1024)
        return False

    command = [str(programs.redis_server), "redis.conf", "--port"]
    return home.server(folder, command, signal.SIGTERM, is_ready)
