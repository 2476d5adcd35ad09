"""A real PgBouncer in front of the test's database server, as an operator would set it up."""

import asyncio
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from app.dev.embedded import EmbeddedError, unpack
from bench.testbed.ports import free_port
from bench.testbed.process import ROOT, Program, as_nobody

# The documented one, on a port of ours, for any database of the test's server.
TEXT = (ROOT / "docs/deploying.md").read_text()
CONFIG = TEXT[TEXT.index("[databases]\nflokit = ") :].partition("```")[0]
ROLE_SETTINGS = [line for line in TEXT.splitlines() if line.startswith("ALTER ROLE flokit SET ")]


class Arrangement(NamedTuple):
    """The configuration of PgBouncer: the settings of the role, and its own."""

    role: Sequence[str]
    settings: dict[str, str]
    synchronous_commit: str


DOCUMENTED = Arrangement(ROLE_SETTINGS, {"default_pool_size": "3"}, "on")
# The opposite: no setting helps the gateway.
BARE = Arrangement(
    [
        f"ALTER ROLE flokit SET {name} = '{value}'"
        for name, value in {
            "synchronous_commit": "off", "jit": "on", "tcp_keepalives_idle": "7200",
            "tcp_keepalives_interval": "75", "tcp_keepalives_count": "9",
        }.items()
    ],
    {
        "default_pool_size": "3",
        "max_prepared_statements": "0",
        "ignore_startup_parameters": "lock_timeout, statement_timeout, jit, "
        "idle_in_transaction_session_timeout, tcp_keepalives_idle, tcp_keepalives_interval, "
        "tcp_keepalives_count",
    },
    "off",
)  # fmt: skip


def find_pgbouncer() -> Path:
    """The program: Debian's, or else the host's. Raises `EmbeddedError`."""
    try:
        return unpack(["pgbouncer"]) / "usr/sbin/pgbouncer"
    except EmbeddedError:
        found = shutil.which("pgbouncer")
        if found is None:
            raise
        return Path(found)


@dataclass
class PgBouncer:
    """A PgBouncer that lets `role` in; it keeps its port over restarts."""

    program: Path
    folder: Path
    server_url: str
    role: str
    password: str
    settings: Mapping[str, str]
    port: int = 0
    _process: Program | None = None

    def url_of(self, database: str) -> str:
        """The address of a database behind it."""
        netloc = f"{self.role}:{self.password}@127.0.0.1:{self.port}"
        return urlunsplit(("postgresql", netloc, f"/{database}", "", ""))

    def role_settings(self) -> list[str]:
        """The documented settings of the role."""
        return [line.replace("ROLE flokit", f"ROLE {self.role}") for line in ROLE_SETTINGS]

    def configure(self, **aliases: str) -> None:
        """Write its files; `aliases` are other names for databases of the server."""
        server = urlsplit(self.server_url)
        place = f"host={server.hostname} port={server.port or 5432}\n"
        users = self.folder / "userlist.txt"
        users.write_text(f'"{self.role}" "{self.password}"\n')
        databases = [f"{alias} = dbname={name} {place}" for alias, name in aliases.items()]
        port = f"{self.port}\nunix_socket_dir =\nadmin_users = {self.role}\n"
        text = CONFIG
        for written, used in {
            "flokit = host=127.0.0.1 port=5432\n": f"{''.join(databases)}* = {place}",
            "listen_port = 6432\n": f"listen_port = {port}",
            "/etc/pgbouncer/userlist.txt": str(users),
        }.items():
            assert text.count(written) == 1, f"not in the documented configuration: {written}"
            text = text.replace(written, used)
        text += "".join(f"{name} = {value}\n" for name, value in self.settings.items())
        (self.folder / "pgbouncer.ini").write_text(text)

    def start(self) -> None:
        """Start it, and return at once."""
        self.port = self.port or free_port()
        self.configure()
        command = as_nobody([str(self.program), str(self.folder / "pgbouncer.ini")])
        self._process = Program(command, self.folder / "pgbouncer.log")
        self._process.start()

    async def start_ready(self) -> None:
        """Start it, and return when it listens; raises BenchError."""
        # In the thread of the loop: the process ends with the thread that starts it.
        self.start()
        await asyncio.to_thread(self.wait_until_ready)

    def wait_until_ready(self) -> None:
        """Return when it listens; raises BenchError."""
        assert self._process is not None, "not started"
        self._process.wait_until(self._listens)

    @property
    def has_ended(self) -> bool:
        """Whether it does not run."""
        return self._process is None or self._process.exit_code is not None

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if self._process is not None:
            self._process.signal(number)

    def stop(self, farewell: signal.Signals = signal.SIGQUIT) -> None:
        """End it at once: its clients' connections close."""
        if self._process is not None:
            self._process.stop(farewell)

    async def command(self, text: str) -> None:
        """Run a command in its console."""
        console = await asyncpg.connect(self.url_of("pgbouncer"), statement_cache_size=0)
        await console.execute(text)
        await console.close()


@contextmanager
def pgbouncer(
    program: Path, folder: Path, server_url: str, role: str, password: str, **settings: str
) -> Iterator[PgBouncer]:
    """Run PgBouncer as documented; `settings` come on top."""
    folder.mkdir()
    bouncer = PgBouncer(program, folder, server_url, role, password, settings)
    try:
        bouncer.start()
        bouncer.wait_until_ready()
        yield bouncer
    finally:
        bouncer.stop()
