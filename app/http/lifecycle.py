"""The lifecycle of a serving process: start, signal, drain, end."""

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

# A full collection visits the objects of every connection, which blocks the loop for thousands of
# them; nearly all of the gateway's objects are freed by reference counting.
COLLECT_AFTER = (2_000, 20, 50)
# A computing thread releases the interpreter's lock after this time, for which the loop waits after
# each poll of its sockets. Python's default is 5 ms.
SWITCH_S = 0.0005

log = logging.getLogger(__name__)


def serve(settings: Settings, listener: socket.socket | None = None) -> None:
    """Serve until a signal ends it; raises WorkspacesError before it listens."""
    # Created here even for workers, which create their own: a wrong file is reported once.
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
        loop.close()  # `asyncio.run` would first wait for every task, without a time limit


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

    Sanic's own runner loses a signal during the set-up of its loop, and is killed by a second one
    at the beginning of the drain.
    """
    ended = _ending_signal()
    await server.start()
    # Objects of the start-up stay: collections ignore them from now on.
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
