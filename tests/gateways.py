"""Gateways for tests: in this process, and as processes of their own."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

import msgspec

from app.claims import Claims
from app.claims.redis import RedisClaims
from app.gateway import create_gateway
from app.http.server import Server
from app.ingest import utc_now
from app.settings import read_settings
from bench.testbed.callbacks import workspace_toml
from bench.testbed.client import Answer, fetch, get, metrics, post
from bench.testbed.database import connected, execute
from bench.testbed.ports import free_port
from bench.testbed.process import OK, PATIENCE_S, ServerProcess
from sinks import Quarantine, Sink
from sinks.timescale.sink import TimescaleSink
from tests import leaks

SECRET = "s3cr3t"  # noqa: S105 - the vectors' own
# The limit of the last scrape of a process: it may be frozen.
LAST_METRICS_S = 1.0


def is_without_secret(drawn: str | bytes) -> bool:
    """Whether a drawn value may be stored: hypothesis also draws constants of the tests."""
    return SECRET not in unquote(drawn if isinstance(drawn, str) else drawn.decode("latin-1"))


# For tests that hold up writes: none of these ends by its own time-out meanwhile.
PATIENT = {"COMMIT_TIMEOUT_S": "20", "CLAIM_LEASE_S": "40"}
# A writer of `events` waits for this lock by trying: a lock that it waited for, such as one on the
# table, would fail the write after two thirds of a second.
_HOLD = """
CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    WHILE NOT pg_try_advisory_xact_lock_shared(1) LOOP PERFORM pg_sleep(0.01); END LOOP;
    RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS hold ON events;
CREATE TRIGGER hold BEFORE INSERT ON events FOR EACH STATEMENT EXECUTE FUNCTION hold();
"""


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
        await execute(self.url_of(database) if database else self.database_url, *statements)


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
    """Return a workspaces file in which each app token has the vectors' mapping."""
    return workspace_toml("ws_test", *app_tokens, more=more)


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
        return await metrics(self.port)


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
    """Starts gateways in this process, and stops them at the end of the test.

    `now` is the clock of those that are started next.
    """

    def __init__(self, database_url: str, redis_url: str, folder: Path) -> None:
        self.database_url = database_url
        self.redis_url = redis_url
        self.folder = folder
        self.now: Callable[[], datetime] = utc_now
        self._running: list[Running] = []

    async def start(
        self,
        *,
        claims: Claims | None = None,
        sink: Sink | None = None,
        quarantine: Quarantine | None = None,
        **settings: str,
    ) -> Running:
        """Start one, which is patient; `settings` are environment variables."""
        chosen = PATIENT | settings
        environ = environment(self.database_url, self.redis_url, self.folder, **chosen)
        gateway = create_gateway(
            read_settings(environ), claims=claims, sink=sink, quarantine=quarantine, now=self.now
        )
        listener = socket.create_server(("127.0.0.1", 0))
        server = Server(gateway, listener)
        await server.start()
        running = Running(server, listener.getsockname()[1])
        self._running.append(running)
        return running

    async def execute(self, *statements: str) -> None:
        """Run statements in the test's database, each in a transaction of its own."""
        await execute(self.database_url, *statements)

    @asynccontextmanager
    async def held_writes(self) -> AsyncIterator[None]:
        """Hold up every write of events, as long as its commit time-out allows; see PATIENT."""
        await self.execute(_HOLD)
        async with connected(self.database_url) as connection, connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock(1)")
            yield

    async def stop(self) -> None:
        """Stop those that still run."""
        for running in self._running:
            if not running.is_stopped:
                await running.stop()


class Process(Target, ServerProcess):
    """`python -m app serve` as a process of its own."""

    def __init__(self, database_url: str, redis_url: str, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.database_url = database_url
        environ = environment(database_url, redis_url, folder, **settings)
        super().__init__(free_port(), environ, folder / "gateway.log")

    def __exit__(self, *_: object) -> None:
        # Without an answer where the process has ended, or is frozen.
        metrics = fetch(self.port, "/metrics", LAST_METRICS_S).body
        self.stop()
        assert SECRET.encode() not in metrics, "the secret is in the metrics"

    def wait_until_alive(self) -> None:
        """Return when the process answers, ready or not."""
        self.wait_until(lambda: self.status("/healthz") == OK)

    async def buffered(self) -> int:
        """Return the number of accepted, uncommitted events."""
        answer = msgspec.json.decode((await get(self.port, "/readyz")).body)
        return int(answer["buffer"]["events"])
