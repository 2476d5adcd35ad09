"""`serve`: the gateway as a process, or as several that share one port."""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
from functools import partial

import asyncpg
from sanic import Sanic

from app import logs, workers
from app.edge import GatewayProtocol
from app.server import App, create_app
from app.settings import Settings, SettingsError, check_deadlock_timeout, read_settings
from app.workspaces import WorkspacesError
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
    except (socket.gaierror, UnicodeError):
        raise SettingsError(f"HOST: {host!r} is no address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f"HOST: {host!r} is no address of this machine") from None
        raise ListenError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)} "
            "(HOST and PORT choose another address)"
        ) from None


def serve(settings: Settings, listener: socket.socket | None = None) -> None:
    """Serve until a signal ends it; raises WorkspacesError before it listens."""
    # Also where the workers read it again: a wrong file is told once, and nothing is started.
    app = create_app(settings)
    listener = listener or listen(settings)
    if settings.workers == 1:
        _serve_app(app, listener)
    else:
        workers.run(partial(_serve_worker, settings, listener), settings.workers)


def _serve_app(app: App, listener: socket.socket) -> None:
    app.before_server_stop(_ignore_signals)  # the last one added is the first one called
    app.prepare(sock=listener, protocol=GatewayProtocol, single_process=True)
    Sanic.serve_single(app)


def _serve_worker(settings: Settings, listener: socket.socket) -> None:
    logs.configure(settings.log_level)
    try:
        app = create_app(settings)
    except WorkspacesError as error:
        # An older file would drop callbacks that the others accept: better one worker less.
        log.error("worker not started: workspaces file refused", extra={"error": str(error)})
        sys.exit(2)
    _serve_app(app, listener)


async def _ignore_signals(_: App) -> None:
    """Let nothing but the drain itself end the drain: by now Sanic has given its handlers up."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


async def _look_at_server(settings: Settings) -> None:
    """Check what depends on the database's own settings, if it is there; raises SettingsError."""
    try:
        connection = await schema.connect(
            settings.database_url, timeout_s=LOOK_TIMEOUT_S, command_timeout_s=LOOK_TIMEOUT_S
        )
        server = await schema.inspect(connection)
        await connection.close()
    except (schema.NoAnswer, asyncpg.PostgresError, OSError, TimeoutError) as error:
        log.warning("the database does not answer yet", extra={"error": str(error)})
        return
    milliseconds = int(server.settings["deadlock_timeout"])
    check_deadlock_timeout(settings.commit_timeout_s, milliseconds / 1000)
