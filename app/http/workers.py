"""Several workers on one host: processes that accept connections on one socket.

Sanic's own manager does not replace a worker that was killed, and kills the whole process group,
other programs in it too, when a signal arrives while a worker starts.
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

# A worker that always ends at once must not be restarted in a busy loop.
REPLACE_AFTER_S = 1.0
POLL_S = 0.1

log = logging.getLogger(__name__)


def run(work: Callable[[], None], number: int, listener: socket.socket) -> None:
    """Run `work` in `number` processes until SIGTERM or SIGINT, and replace those that end.

    `work` has the listener too. It is closed here when the processes are terminated.
    """
    with tempfile.TemporaryDirectory(prefix="flokit-metrics-") as folder:
        # The workers count into files there, so that any of them can report the sum of all.
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
        self._is_stopping = False
        self._started_at: dict[SpawnProcess, float] = {}
        # Names without a process, each with the time from which it may be started. A replacement
        # continues in the metric files of its name: there are never more files than names.
        self._missing = {f"worker-{index}": 0.0 for index in range(number)}

    def run(self) -> None:
        for number in signals.ENDING:
            signal.signal(number, self._on_signal)
        resource_tracker.ensure_running()  # else a worker's start would, and unblock signals
        while self._started_at or not self._is_stopping:
            self._start_missing()
            ended = wait([process.sentinel for process in self._started_at], POLL_S)
            if self._is_stopping:
                self._terminate_workers()
            for process in [p for p in self._started_at if p.sentinel in ended]:
                self._reap(process)
        for number in signals.ENDING:
            signal.signal(number, signal.SIG_IGN)  # no worker is left to stop

    def _start_missing(self) -> None:
        now = time.monotonic()
        for name in [name for name, moment in self._missing.items() if moment <= now]:
            if not self._is_stopping:
                self._start(name, now)

    def _start(self, name: str, now: float) -> None:
        spawn = multiprocessing.get_context("spawn").Process
        process = spawn(target=_worker, args=(self._work,), name=name)
        try:
            # Ctrl-C at the terminal is handled by the parent alone, even before `_worker` runs.
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
            process.start()
        except OSError as error:  # no memory, or killed before it received its work
            log.error("a worker failed to start and is retried", extra={"reason": str(error)})
            self._missing[name] = now + REPLACE_AFTER_S
        else:
            self._started_at[process] = now
            del self._missing[name]
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])

    def _reap(self, process: SpawnProcess) -> None:
        self._missing[process.name] = self._started_at.pop(process) + REPLACE_AFTER_S
        process.join()
        mark_process_dead(process.name)  # type: ignore[no-untyped-call]
        if not self._is_stopping:
            reason = f"exit code {process.exitcode}"
            log.error("a worker ended and is replaced", extra={"reason": reason})

    def _on_signal(self, *_: object) -> None:
        # Nothing more: a signal can interrupt the start of a worker, and handlers nest up to the
        # recursion limit.
        self._is_stopping = True

    def _terminate_workers(self) -> None:
        # Else the kernel accepts connections even after the last worker has closed its listener.
        self._listener.close()
        for process in self._started_at:
            process.terminate()  # a worker that is draining already ignores it


def _worker(work: Callable[[], None]) -> None:
    os.setsid()  # a session of its own, which Ctrl-C does not reach
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    work()
