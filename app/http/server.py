"""`serve`: the gateway as a process, or as several that share one port."""

import asyncio
import errno
import gc
import logging
import os
import select
import signal
import socket
import sys
from contextlib import suppress
from functools import partial
from typing import Any

from sanic.server.loop import try_use_uvloop

from app import signals
from app.http import workers
from app.http.app import SanicApp, create_app
from app.http.protocol import GatewayProtocol
from app.settings import Settings, SettingsError
from app.telemetry import logs
from app.workspaces_file import WorkspacesError

BACKLOG = 4096
# A thread that works gives the interpreter's lock back after so long. By default it is 5 ms, for
# which the loop would wait after each look at its sockets.
SWITCH_S = 0.0005
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
    signals.exit_without_threads()
