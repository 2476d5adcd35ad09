"""Gateways for tests: in this process, and as processes of their own."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Self
from urllib.error import URLError
from urllib.parse import urlsplit, urlunsplit
from urllib.request import urlopen

import asyncpg
import coverage
import msgspec

from app.claims import Claims
from app.claims.redis import RedisClaims
from app.dev.processes import free_port
from app.gateway import create_gateway
from app.http.server import Server
from app.settings import read_settings
from bench.testbed.gateway import bound
from sinks import Sink
from sinks.timescale.sink import TimescaleSink
from tests import leaks
from tests.client import Answer, get, post

ROOT = Path(__file__).parent.parent
SECRET = "s3cr3t"  # noqa: S105 - the vectors' own
EVENTS = {"g3mz3t": "purchase", "bkrfgq": "coins", "g3mfiw": "level", "f0ob4r": "signup"}
# How long a gateway may take to start or to stop on a busy machine.
PATIENCE_S = 30.0
POLL_S = 0.02
# How long one that is about to be stopped may take to return its metrics: it may be frozen.
LAST_WORDS_S = 1.0


@dataclass(frozen=True)
class Services:
    """The database server and the Redis that the tests talk to."""

    database_url: str
    redis_url: str
    description: str

    def url_of(self, database: str) -> str:
        """The address of another database of the same server."""
        return urlunsplit(urlsplit(self.database_url)._replace(path=f"/{database}"))

    async def execute(self, database: str | None, *statements: str) -> None:
        """Run statements, each in a transaction of its own."""
        url = self.url_of(database) if database else self.database_url
        connection = await asyncpg.connect(url)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def database_of(services: Services, template: str, name: str) -> Iterator[str]:
    """The URL of an empty, migrated database, in which the secret must not be at the end."""
    database = f"gateway_{name}_{os.getpid()}"
    asyncio.run(services.execute(None, f"CREATE DATABASE {database} TEMPLATE {template}"))
    yield services.url_of(database)
    leaking = asyncio.run(leaks.in_database(services.url_of(database), SECRET))
    asyncio.run(services.execute(None, f"DROP DATABASE {database} WITH (FORCE)"))
    assert not leaking, f"the secret stands in {leaking}"


def make_claims(services: Services, sink: TimescaleSink, lease_s: float = 15) -> RedisClaims:
    """Claims of another process on the same database."""
    return RedisClaims(
        services.redis_url, generation=lambda: sink.generation, lease_s=lease_s, seen_window_d=30
    )


def workspaces_toml(*app_tokens: str, more: str = "") -> str:
    """A workspaces file in which each app token has the vectors' mapping."""
    apps = "".join(
        f'\n[[workspaces.apps]]\nvendor = "adjust"\napp_token = "{token}"\n'
        f"events = {{ {', '.join(f'{key} = {json.dumps(to)}' for key, to in EVENTS.items())} }}\n"
        f"{more}"
        for token in app_tokens
    )
    return f'[[workspaces]]\nid = "ws_test"\n{apps}'


def environment(database_url: str, redis_url: str, folder: Path, **more: str) -> dict[str, str]:
    """The settings of a gateway with its workspaces file in `folder`."""
    path = folder / "workspaces.toml"
    if not path.exists():
        path.write_text(workspaces_toml("abc123token"))
    return {
        "HOST": "127.0.0.1",
        "DATABASE_URL": database_url,
        "REDIS_URL": redis_url,
        "WORKSPACES_FILE": str(path),
        "ADJUST_CALLBACK_SECRET": SECRET,
        "DRAIN_PAUSE_S": "0",
    } | more


def query(**parameters: str) -> str:
    """The query of a callback that is written, unless `parameters` change that."""
    sent = {
        "secret": SECRET,
        "app_token": "abc123token",
        "event_token": "g3mz3t",
        "activity_kind": "event",
        "created_at": "1750500000",
        "os_name": "ios",
        "user_id": "usr_1",
    } | parameters
    return "&".join(f"{name}={value}" for name, value in sent.items())


class Target:
    """A gateway that listens on a port of this machine."""

    port: int

    async def callback(self, **parameters: str) -> Answer:
        """Send a callback as a GET."""
        return await self.send(query(**parameters))

    async def send(self, query: str) -> Answer:
        """Send a query as it is."""
        return await get(self.port, f"/ingest/adjust?{query}")

    async def post(self, body: bytes, content_type: str | None = None, **parameters: str) -> Answer:
        """Send a callback as a POST; its query holds just `parameters` and the credentials."""
        sent = {"secret": SECRET, "app_token": "abc123token"} | parameters
        target = "/ingest/adjust?" + "&".join(f"{name}={value}" for name, value in sent.items())
        return await post(self.port, target, body, content_type)

    async def metrics(self) -> dict[str, float]:
        """The metrics of the gateway, by series."""
        text = (await get(self.port, "/metrics")).body.decode()
        lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
        return {series: float(value) for series, _, value in lines}


class Running(Target):
    """A gateway in this process."""

    def __init__(self, server: Server, port: int) -> None:
        self.gateway = server.gateway
        self.port = port
        self.is_stopped = False
        self.server = server

    async def stop(self) -> None:
        """Stop as the product does: drain, close the listener, answer, close the parts."""
        self.is_stopped = True
        await self.server.stop(PATIENCE_S)


class Gateways:
    """Starts gateways in this process, and stops them at the end of the test."""

    def __init__(self, database_url: str, redis_url: str, folder: Path) -> None:
        self.database_url = database_url
        self.redis_url = redis_url
        self.folder = folder
        self._running: list[Running] = []

    async def start(
        self, *, claims: Claims | None = None, sink: Sink | None = None, **settings: str
    ) -> Running:
        """Start one; `settings` are environment variables."""
        environ = environment(self.database_url, self.redis_url, self.folder, **settings)
        gateway = create_gateway(read_settings(environ), claims=claims, sink=sink)
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(gateway, listener)
        await server.start()
        running = Running(server, listener.getsockname()[1])
        self._running.append(running)
        return running

    async def execute(self, *statements: str) -> None:
        """Run statements in the test's database, each in a transaction of its own."""
        connection = await asyncpg.connect(self.database_url)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    @asynccontextmanager
    async def locked_events(self) -> AsyncIterator[None]:
        """Lock `events` meanwhile, so that no other connection can write to it."""
        connection = await asyncpg.connect(self.database_url)
        try:
            async with connection.transaction():
                await connection.execute("LOCK TABLE events IN ACCESS EXCLUSIVE MODE")
                yield
        finally:
            await connection.close()

    async def stop(self) -> None:
        """Stop those that still run."""
        for running in self._running:
            if not running.is_stopped:
                await running.stop()


class Process(Target):
    """`python -m app serve` as a process of its own."""

    def __init__(self, database_url: str, redis_url: str, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.database_url = database_url
        self.port = free_port()
        self.environ = environment(database_url, redis_url, folder, PORT=str(self.port), **settings)
        self.log = folder / "gateway.log"
        self._popen: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                bound([sys.executable, "-m", "app", "serve"]),
                cwd=ROOT,
                env=inherited() | self.environ,
                stdout=log,
                stderr=log,
            )
        return self

    def __exit__(self, *_: object) -> None:
        metrics = self._last_metrics()
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.wait()
        self.signal(signal.SIGKILL)
        self.wait()
        assert SECRET.encode() not in metrics, "the secret stands in the metrics"

    def _last_metrics(self) -> bytes:
        """The metrics, where the process is still there and able to return them."""
        assert self._popen is not None
        if self._popen.poll() is None:
            with suppress(OSError, HTTPException):
                url = f"http://127.0.0.1:{self.port}/metrics"
                with urlopen(url, timeout=LAST_WORDS_S) as answer:
                    return bytes(answer.read())
        return b""

    @property
    def pid(self) -> int:
        """The process ID."""
        assert self._popen is not None
        return self._popen.pid

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process still runs."""
        assert self._popen is not None
        self._popen.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for the end, and return the exit code."""
        assert self._popen is not None
        return self._popen.wait(timeout_s)

    def wait_until_ready(self) -> None:
        """Return when `/readyz` is green."""
        self._wait_until_green("/readyz")

    def wait_until_alive(self) -> None:
        """Return when it answers, ready or not."""
        self._wait_until_green("/healthz")

    def _wait_until_green(self, path: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.status(path) != 200:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(POLL_S)

    async def buffered(self) -> int:
        """The number of events that are accepted and not committed."""
        answer = msgspec.json.decode((await get(self.port, "/readyz")).body)
        return int(answer["buffer"]["events"])

    def status(self, path: str) -> int:
        """The status of a GET; 0 where there is no answer."""
        try:
            with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=PATIENCE_S) as answer:
                return int(answer.status)
        except URLError as error:
            return int(getattr(error, "code", 0))
        except OSError:
            return 0


def inherited() -> dict[str, str]:
    """The part of this environment that a process needs: no setting of the gateway."""
    found = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    if coverage.Coverage.current() is not None:  # measured in the process too
        found["COVERAGE_PROCESS_START"] = str(ROOT / "pyproject.toml")
    return found
