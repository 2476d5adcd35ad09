"""`serve`: the gateway as a process, or as several that share one port."""

import asyncio
import errno
import gc
import logging
import os
import resource
import select
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any, NoReturn

from sanic.server.loop import try_use_uvloop

from app import signals
from app.http import workers
from app.http.app import SanicApp, create_app
from app.http.connection_limits import CONNECTIONS_MAX, RESERVED_FILES
from app.http.protocol import GatewayProtocol
from app.settings import Settings, SettingsError, check_deadlock_timeout, read_settings
from app.telemetry import logs
from app.workspaces_file import WorkspacesError
from sinks.timescale import hosts, inspection
from sinks.timescale.errors import DatabaseError

BACKLOG = 4096
# A thread that works gives the interpreter's lock back after so long. By default it is 5 ms, for
# which the loop would wait after each look at its sockets.
SWITCH_S = 0.0005
LOOK_TIMEOUT_S = 3.0
# Fewer connections than files that are reserved would close each other.
OPEN_FILES_MIN = 2 * RESERVED_FILES
# Turns of the loop: until nobody is in the queue, and to read what the last one has sent.
TURNS_MAX = 100
# A full collection walks the objects of every connection, which for thousands takes 0.1 s; nearly
# all of ours are freed without one.
COLLECT_AFTER = (2_000, 20, 50)
READ_TURNS = 3
FINISH_POLL_S = 0.02

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The address cannot be had; the message is one line."""


def run() -> int:
    """Serve callbacks until SIGTERM or SIGINT; does not return where it has served."""
    settings = read_settings()
    logs.configure(settings.log_level)
    _allow_open_files()
    asyncio.run(_look_at_server(settings))
    serve(settings)
    _leave()


def _leave() -> NoReturn:
    """End the process, whatever its threads wait for.

    Python would wait for a thread that reads a file, or looks up a name, for as long as that takes.
    """
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens; raises SettingsError or ListenError."""
    host, port = settings.host, settings.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Else Python would have the kernel take IPv6 alone, and Kubernetes may call by IPv4.
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
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
        serve_app(app, listener)
    else:
        workers.run(partial(_serve_worker, settings, listener), settings.workers, listener)


def _allow_open_files() -> None:
    """Raise our own limit of open files, of which every connection is one, as far as we may.

    Raises SettingsError where that leaves no connections to speak of.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        raise SettingsError(
            f"open files (ulimit -Hn): {soft}, but at least {OPEN_FILES_MIN} needed"
        )


def serve_app(app: SanicApp, listener: socket.socket) -> None:
    """Serve in this process until a signal ends it."""
    sys.setswitchinterval(SWITCH_S)
    try_use_uvloop()
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(_serve_until_told(app, listener))
    finally:
        loop.close()  # `asyncio.run` would first wait for every task, whatever that waits for


async def _serve_until_told(app: SanicApp, listener: socket.socket) -> None:
    """Serve until SIGTERM or SIGINT, and then until the drain is over.

    Sanic's own runner loses a signal that comes while it sets its loop up, and is killed by a
    second one that comes as the drain begins.
    """
    # Without a type, since most of Sanic's methods have none.
    server: Any = await app.create_server(
        sock=listener,
        protocol=GatewayProtocol,
        backlog=BACKLOG,  # Sanic's own, 100, would take the place of that of the socket
        return_asyncio_server=True,
        asyncio_server_kwargs={"start_serving": False},
    )
    await server.startup()
    # What is there by now stays: no collection looks at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    told = _hear_signals()
    await server.start_serving()
    await server.after_start()
    await told.wait()
    await server.before_stop()
    await finish(server, listener, app.config.GRACEFUL_SHUTDOWN_TIMEOUT)
    await server.after_stop()


def _hear_signals() -> asyncio.Event:
    """Return what is set by the first signal; nothing but the drain itself ends the drain."""
    loop = asyncio.get_running_loop()
    told = asyncio.Event()

    def hear(*_: object) -> None:
        for number in signals.ENDING:
            signal.signal(number, signal.SIG_IGN)
        loop.call_soon_threadsafe(told.set)

    for number in signals.ENDING:
        signal.signal(number, hear)
    return told


async def finish(server: Any, listener: socket.socket, patience_s: float) -> None:
    """Close the listener and the idle connections, and answer whatever has arrived by then."""
    queue = select.poll()
    queue.register(listener, select.POLLIN)
    for _ in range(TURNS_MAX):
        await asyncio.sleep(0)
        if not queue.poll(0):  # whoever nobody has accepted is reset when the listener closes
            break
    server.close()
    for _ in range(READ_TURNS):
        await asyncio.sleep(0)
    for connection in server.connections:
        connection.close_if_idle()
    with suppress(TimeoutError):
        async with asyncio.timeout(patience_s):
            while server.connections:  # noqa: ASYNC110 - Sanic has no event for it
                await asyncio.sleep(FINISH_POLL_S)
    for connection in server.connections:
        connection.abort()


def _serve_worker(settings: Settings, listener: socket.socket) -> None:
    logs.configure(settings.log_level)
    try:
        app = create_app(settings)
    except WorkspacesError as error:
        # An older file would drop callbacks that the others accept: better one worker less.
        log.error("worker not started: workspaces file refused", extra={"error": str(error)})
        sys.exit(2)
    serve_app(app, listener)
    _leave()


async def _look_at_server(settings: Settings) -> None:
    """Check what depends on the database's own settings, if it is there; raises SettingsError."""
    try:
        async with hosts.connected(
            settings.database_url, timeout_s=LOOK_TIMEOUT_S, command_timeout_s=LOOK_TIMEOUT_S
        ) as connection:
            server = await inspection.inspect(connection)
    except DatabaseError as error:
        log.warning("the database does not answer yet", extra={"error": str(error)})
        return
    if lacking := server.lacking(settings.commit_timeout_s):
        log.warning("the role lacks settings behind a pooler", extra={"run": [*lacking.values()]})
    milliseconds = int(server.settings["deadlock_timeout"])
    check_deadlock_timeout(settings.commit_timeout_s, milliseconds / 1000)
