"""A TimescaleDB and a Redis of one's own, for `dev`, the tests and the bench.

Both listen on 127.0.0.1 only, keep everything under one folder, and end with the process that
started them, even when that is killed.
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

# fsync, synchronous_commit and autovacuum stay on, as they are by default. There is no Unix
# socket, whose path may have no more than 107 bytes. GMT is UTC under the only name that works
# on a host without time zone files.
POSTGRES_CONF = """\
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 100
shared_buffers = '128MB'
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
protected-mode yes
daemonize no
appendonly no
save 60 1
maxmemory-policy noeviction
"""


@dataclass(frozen=True)
class Embedded:
    """The two servers, while they run."""

    database_url: str
    redis_url: str
    description: str  # one line that says which servers these are
    has_timescaledb: bool
    psql: Path  # the client that belongs to the server
    postgres: Server
    redis: Server


@contextmanager
def start(
    folder: Path, *, fallback: bool = False, say: Callable[[str], None] = print
) -> Iterator[Embedded]:
    """Run both servers on what `folder` remembers, and stop them at the end.

    The folder is made when it is missing; deleting it forgets everything. `fallback` goes
    straight to the servers without TimescaleDB, whose data lie apart from the others'. `say` gets
    a line when something takes long or comes out otherwise than hoped. Under root the servers run
    as the owner of the folder's parent, or else as `nobody`, and the folder becomes theirs. Raises
    `EmbeddedError`, also when another process is using the folder.
    """
    programs = find(fallback=fallback, say=say)
    folder = folder.absolute()
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(_locked(folder))
            # A server is told to end when the *thread* that started it ends: this one ends last.
            spawner = stack.enter_context(ThreadPoolExecutor(1, "embedded"))
            home = _Home(folder, lock, spawner)
            redis, postgres = _redis(programs, home), _postgres(programs, home)
        except OSError as why:
            raise EmbeddedError(f"{folder} cannot be used: {why}") from None
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
    """Hold the folder; give a locked file to be inherited by the servers.

    It is free when the last of their processes is gone, and whatever they left behind is stale.
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
        # Those of an owner that was killed are on their way out, unless they hang.
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
        with suppress(OSError):  # ended meanwhile, or somebody else's
            is_server = (process / "exe").readlink().name in ("postgres", "redis-server")
            if is_server and any(map(lock.samefile, (process / "fd").iterdir())):
                os.kill(int(process.name), signal.SIGKILL)


class _Home:
    """The folder, and the account under which the servers live there."""

    def __init__(self, folder: Path, lock: int, spawner: Executor) -> None:
        self.folder, self.lock, self.spawner = folder, lock, spawner
        self.account: pwd.struct_passwd | None = None
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            self.account = pwd.getpwnam("nobody")
            with suppress(KeyError):  # initdb would not take an owner without a name
                owner = pwd.getpwuid(folder.parent.stat().st_uid)
                self.account = owner if owner.pw_uid else self.account
        for path in (folder, folder / "owner.lock", folder / "servers.lock"):
            self.own(path)
        self.password = self._password()

    def own(self, path: Path) -> Path:
        """Give a file of ours to the servers' account."""
        if self.account:
            os.chown(path, self.account.pw_uid, self.account.pw_gid, follow_symlinks=False)
        return path

    def write(self, path: Path, text: str) -> Path:
        """Write a file that nobody else may read."""
        path.touch(mode=0o600)
        path.write_text(text)
        return self.own(path)

    def _password(self) -> str:
        """Return the password of both servers, a new one in a new folder.

        Loopback alone is no protection: under root the servers may read and write every file,
        and every user of the machine could tell them to.
        """
        path = self.folder / "password"
        if path.exists() and (password := path.read_text()):
            return password
        password = secrets.token_hex(16)
        self.write(path, password)
        return password

    def bound(self, command: list[str], farewell: signal.Signals) -> list[str]:
        """The command, to be run under the servers' account, and sent `farewell` when we die."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:  # not Linux: what a killed owner leaves behind, the next start ends
            if self.account:
                raise EmbeddedError("root needs setpriv here, since PostgreSQL refuses root")
            return command
        words = [setpriv, f"--pdeathsig={farewell.name}"]
        if self.account:
            words += [f"--reuid={self.account.pw_uid}", f"--regid={self.account.pw_gid}"]
            # Programs and folder may lie where only root may look, /root for one. The securebit
            # makes access(2), by which PostgreSQL looks for its programs, know of that right.
            words += ["--clear-groups", "--securebits=+no_setuid_fixup"]
            words += ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
        return words + command

    def server(
        self,
        folder: Path,
        command: list[str],
        farewell: signal.Signals,
        answers: Callable[[int], bool],
    ) -> Server:
        """A server that works in this folder, with its log beside it."""
        log = self.write(folder.with_name(f"{folder.name}.log"), "")
        bound = self.bound(command, farewell)
        return Server(folder, log, bound, answers, farewell, self.lock, self.spawner)


def _postgres(programs: Programs, home: _Home) -> Server:
    name = f"postgresql-{programs.postgres_version.split('.')[0]}"
    data = home.folder / (f"{name}-timescaledb" if programs.has_timescaledb else name)
    if not data.exists():
        _init_postgres(programs.bin_folder, home, data)
    conf = POSTGRES_CONF + TIMESCALEDB_CONF if programs.has_timescaledb else POSTGRES_CONF
    home.write(data / "postgresql.conf", conf)
    # Left by a crash, it names a process ID that may be somebody else's by now.
    (data / "postmaster.pid").unlink(missing_ok=True)

    def answers(port: int) -> bool:
        # Not a mere connection, which PostgreSQL accepts before it is ready.
        ask = [str(programs.bin_folder / "pg_isready"), "--quiet", "-h127.0.0.1", f"-p{port}"]
        return subprocess.run(ask, env=ENVIRONMENT, check=False).returncode == 0

    command = [str(programs.bin_folder / "postgres"), f"-D{data}", "-p"]
    return home.server(data, command, signal.SIGINT, answers)


def _init_postgres(bin_folder: Path, home: _Home, data: Path) -> None:
    """Make a data folder with a database `flokit`; what appears as `data` is complete."""
    new = data.with_name(f"{data.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    home.own(new)
    initdb = [str(bin_folder / "initdb"), f"-D{new}", "-Uflokit", "-EUTF8", "--locale=C"]
    # PostgreSQL's own C.UTF-8, since the host may have none.
    initdb += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    initdb += ["--auth=scram-sha-256", f"--pwfile={home.folder / 'password'}"]
    run(home.bound(initdb, signal.SIGKILL), timeout_s=INIT_TIMEOUT_S)
    single = [str(bin_folder / "postgres"), "--single", f"-D{new}", "postgres"]
    create = home.bound(single, signal.SIGKILL)
    run(create, timeout_s=INIT_TIMEOUT_S, said="CREATE DATABASE flokit\n")
    new.rename(data)


def _redis(programs: Programs, home: _Home) -> Server:
    # An older Redis cannot read what a newer one has saved.
    folder = home.folder / f"redis-{programs.redis_version.split('.')[0]}"
    folder.mkdir(mode=0o700, exist_ok=True)
    home.own(folder)
    conf = home.write(folder / "redis.conf", f"{REDIS_CONF}requirepass {home.password}\n")

    def answers(port: int) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=3) as peer:
            peer.sendall(f"AUTH {home.password}\r\nPING\r\n".encode())
            return b"+PONG" in peer.recv(1024)
        return False

    command = [str(programs.redis_server), conf.name, "--port"]
    return home.server(folder, command, signal.SIGTERM, answers)
