"""The life of a serving process: start, a signal, the drain, the end."""

import asyncio
import gc
import logging
import signal
import socket
import sys
from functools import partial

import uvloop

from app import signals
from app.gateway import Gateway, create_gateway
from app.http import workers
from app.http.server import Server, listen
from app.settings import Settings
from app.telemetry import logs
from app.telemetry.observer import choose_observer
from app.workspaces_file import WorkspacesError

# A full collection walks the objects of every connection, which takes long for thousands of them;
# nearly all of the gateway's objects are freed without one.
COLLECT_AFTER = (2_000, 20, 50)
# A thread that computes gives the interpreter's lock back after this time, for which the loop waits
# after each look at its sockets. Python's default is 5 ms.
SWITCH_S = 0.0005

log = logging.getLogger(__name__)


def serve(settings: Settings, listener: socket.socket | None = None) -> None:
    """Serve until a signal ends it; raises WorkspacesError before it listens."""
    # Made here also for workers, which make their own: a wrong file is reported once.
    gateway = create_gateway(settings, observer=choose_observer())
    listener = listener or listen(settings)
    if settings.workers == 1:
        serve_gateway(gateway, listener)
    else:
        workers.run(partial(_serve_worker, settings, listener), settings.workers, listener)


def serve_gateway(gateway: Gateway, listener: socket.socket) -> None:
    """Serve in this process until a signal ends it."""
    sys.setswitchinterval(SWITCH_S)
    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(serve_until_signal(Server(gateway, listener)))
    finally:
        loop.close()  # `asyncio.run` would first wait for every task, however long that takes


def _serve_worker(settings: Settings, listener: socket.socket) -> None:
    logs.configure(settings.log_level)
    try:
        gateway = create_gateway(settings, observer=choose_observer())
    except WorkspacesError as error:
        # An older file would drop callbacks that the other workers accept: better one worker less.
        log.error("worker not started: workspaces file refused", extra={"error": str(error)})
        sys.exit(2)
    serve_gateway(gateway, listener)
    signals.exit_without_threads()


async def serve_until_signal(server: Server) -> None:
    """Serve until SIGTERM or SIGINT, and then until the drain is over.

    Sanic's own runner loses a signal that comes while it sets its loop up, and is killed by a
    second one that comes as the drain begins.
    """
    ended = _ending_signal()
    await server.start()
    # Objects of the start stay: no collection looks at them again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECT_AFTER)
    await ended.wait()
    await server.stop()


def _ending_signal() -> asyncio.Event:
    """Return an event that the first signal sets; a second one does not cut the drain short."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()

    def note(*_: object) -> None:
        for number in signals.ENDING:
            signal.signal(number, signal.SIG_IGN)
        loop.call_soon_threadsafe(ended.set)

    for number in signals.ENDING:
        signal.signal(number, note)
    return ended
