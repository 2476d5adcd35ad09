"""`serve`: the gateway as a process, or as several that share one port."""

import asyncio
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
from app.settings import Settings, check_deadlock_timeout, read_settings

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
    serve(settings, listen(settings.host, settings.port))
    return 0


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; raises ListenError."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise ListenError(
            f"cannot listen on {host} port {port}: {error.strerror} (HOST and PORT choose another)"
        ) from None


def serve(settings: Settings, listener: socket.socket) -> None:
    """Serve on a listening socket; raises WorkspacesError before the first connection."""
    if settings.workers == 1:
        app = create_app(settings)
        app.prepare(sock=listener, protocol=GatewayProtocol, single_process=True)
        Sanic.serve_single(app)
        return
    with tempfile.TemporaryDirectory(prefix="flokit-metrics-") as folder:
        # The workers count into files there, so that each of them can tell the sum of all.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        loader = AppLoader(factory=partial(_worker, settings))
        app = loader.load()
        app.prepare(sock=listener, protocol=GatewayProtocol, workers=settings.workers)
        Sanic.serve(app, app_loader=loader)


def _worker(settings: Settings) -> App:
    logs.configure(settings.log_level)
    return create_app(settings)


async def _look_at_server(settings: Settings) -> None:
    """Check what depends on the database's own settings, if it is there; raises SettingsError."""
    try:
        connection = await asyncpg.connect(settings.database_url, timeout=LOOK_TIMEOUT_S)
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
