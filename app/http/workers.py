"""Several workers on one host: processes that accept connections on one socket.

Sanic's own manager does not replace a worker that was killed, and kills the whole process group,
whoever else is in it, when a signal comes while a worker starts.
"""

import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from prometheus_client.multiprocess import mark_process_dead

from app import signals

# A worker that ends at once, again and again, must not keep the machine busy.
REPLACE_AFTER_S = 1.0
LOOK_S = 0.1

log = logging.getLogger(__name__)


def run(work: Callable[[], None], number: int, listener: socket.socket) -> None:
    """Run `work` in `number` processes until SIGTERM or SIGINT, and replace those that end.

    `work` has the listener too. It is closed here when the processes are told to end.
    """
    with tempfile.TemporaryDirectory(prefix="flokit-metrics-") as folder:
        # The workers count into files there, so that each of them can tell the sum of all.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        _Workers(work, number, listener).run()


def is_orphan() -> bool:
    """Return whether this process is a worker, and its parent has ended."""
    parent = multiprocessing.parent_process()
    return parent is not None and not parent.is_alive()


class _Workers:
    def __init__(self, work: Callable[[], None], number: int, listener: socket.socket) -> None:
        self._work = work
        self._listener = listener
        self._is_told = False
        self._started_at: dict[SpawnProcess, float] = {}
        # From when on each that is missing may be started, by its place: who takes a place goes on
        # in the files of its metrics, so that there are never more of them than places.
        self._missing = {f"worker-{place}": 0.0 for place in range(number)}

    def run(self) -> None:
        for number in signals.ENDING:
            signal.signal(number, self._stop)
        resource_tracker.ensure_running()  # the first worker's start would, and unblock signals
        while self._started_at or not self._is_told:
            self._start_missing()
            ended = wait([process.sentinel for process in self._started_at], LOOK_S)
            if self._is_told:
                self._tell_workers()
            for process in [p for p in self._started_at if p.sentinel in ended]:
                self._bury(process)
        for number in signals.ENDING:
            signal.signal(number, signal.SIG_IGN)  # there is nothing left to stop

    def _start_missing(self) -> None:
        now = time.monotonic()
        for name in [name for name, moment in self._missing.items() if moment <= now]:
            if not self._is_told:
                self._start(name, now)

    def _start(self, name: str, now: float) -> None:
        spawn = multiprocessing.get_context("spawn").Process
        process = spawn(target=_worker, args=(self._work,), name=name)
        try:
            # Ctrl-C at the terminal is the parent's to hear, also before `_worker` is reached.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            process.start()
        except OSError as error:  # no memory, or it was killed before it had been told what to do
            log.error("a worker does not start, and is tried again", extra={"reason": str(error)})
            self._missing[name] = now + REPLACE_AFTER_S
        else:
            self._started_at[process] = now
            del self._missing[name]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def _bury(self, process: SpawnProcess) -> None:
        self._missing[process.name] = self._started_at.pop(process) + REPLACE_AFTER_S
        process.join()
        mark_process_dead(process.name)  # type: ignore[no-untyped-call]
        if not self._is_told:
            reason = f"exit code {process.exitcode}"
            log.error("a worker ended and is replaced", extra={"reason": reason})

    def _stop(self, *_: object) -> None:
        # No more than this: a signal can interrupt the start of a worker, and the handler of the
        # signal before it, as deep as Python lets calls go.
        self._is_told = True

    def _tell_workers(self) -> None:
        # Else callers would still get in when the last worker has closed the door.
        self._listener.close()
        for process in self._started_at:
            process.terminate()  # those that were told before ignore it


def _worker(work: Callable[[], None]) -> None:
    os.setsid()  # from here on, Ctrl-C does not reach it
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    work()
