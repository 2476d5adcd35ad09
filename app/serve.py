"""`serve`: the gateway as a process, or as several that share one port."""

import asyncio
import errno
import logging
import os
import socket
import tempfile
from functools import partial

import asyncpg
from sanic import Sanic
from sanic.worker.loader import AppLoader

from app import logs
from app.edge import GatewayProtocol
from app.server import App, create_app
from app.settings import Settings, SettingsError, check_deadlock_timeout, read_settings
from sinks import schema

BACKLOG = 1024
LOOK_TIMEOUT_S = 3.0

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The address cannot be had; the message is one line."""


def run() -> int:
    """Serve callbacks until SIGTERM or SIGINT."""
    settings = read_settings()
    logs.configure(settings.log_level)
    asyncio.run(_look_at_server(settings))
    serve(settings)
    return 0


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens; raises SettingsError or ListenError."""
    host, port = settings.host, settings.port
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f"HOST: {host!r} is no address of this machine") from None
        raise ListenError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)} "
            "(HOST and PORT choose another address)"
        ) from None


def serve(settings: Settings, listener: socket.socket | None = None) -> None:
    """Serve until a signal ends it; raises WorkspacesError before it listens."""
    if settings.workers == 1:
        app = create_app(settings)
        sock = listener or listen(settings)
        app.prepare(sock=sock, protocol=GatewayProtocol, single_process=True)
        Sanic.serve_single(app)
        return
    with tempfile.TemporaryDirectory(prefix="flokit-metrics-") as folder:
        # The workers count into files there, so that each of them can tell the sum of all.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        loader = AppLoader(factory=partial(_worker, settings))
        app = loader.load()
        sock = listener or listen(settings)
        app.prepare(sock=sock, protocol=GatewayProtocol, workers=settings.workers)
        Sanic.serve(app, app_loader=loader)


def _worker(settings: Settings) -> App:
    logs.configure(settings.log_level)
    return create_app(settings)


async def _look_at_server(settings: Settings) -> None:
    """Check what depends on the database's own settings, if it is there; raises SettingsError."""
    try:
        connection = await schema.connect(settings.database_url, timeout_s=LOOK_TIMEOUT_S)
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        log.warning("the database does not answer yet", extra={"error": str(error)})
        return
    try:
        milliseconds = await connection.fetchval(
            "SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout'"
        )
        check_deadlock_timeout(settings.commit_timeout_s, milliseconds / 1000)
    finally:
        await connection.close()
