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
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from prometheus_client.multiprocess import mark_process_dead

# A worker that ends at once, again and again, must not keep the machine busy.
REPLACE_AFTER_S = 1.0
LOOK_S = 0.1
# What tells the parent, a worker, and a process without workers to end.
SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = logging.getLogger(__name__)


def run(work: Callable[[], None], number: int, listener: socket.socket) -> None:
    """Run `work` in `number` processes until SIGTERM or SIGINT, and replace those that end.

    `work` has the listener too. It is closed here when the processes are told to end.
    """
    with tempfile.TemporaryDirectory(prefix="flokit-metrics-") as folder:
        # The workers count into files there, so that each of them can tell the sum of all.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        _Workers(work, number, listener).run()


class _Workers:
    def __init__(self, work: Callable[[], None], number: int, listener: socket.socket) -> None:
        self._work = work
        self._number = number
        self._listener = listener
        self._times_told = 0  # a signal may interrupt its own handler: no locks
        self._next_start = 0.0
        self._processes: list[SpawnProcess] = []

    def run(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._stop)
        for _ in range(self._number):
            self._start()
        while self._processes:
            ended = wait([process.sentinel for process in self._processes], LOOK_S)
            if self._times_told > 0:
                # Else callers would still get in when the last worker has closed the door. The
                # signal's handler may not do it: it can interrupt the start of a worker.
                self._listener.close()
            for process in [p for p in self._processes if p.sentinel in ended]:
                self._processes.remove(process)
                process.join()
                mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
                self._replace(f"exit code {process.exitcode}")
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # there is nothing left to stop

    def _start(self) -> None:
        if self._times_told > 0:
            return
        self._next_start = time.monotonic() + REPLACE_AFTER_S
        process = multiprocessing.get_context("spawn").Process(target=_worker, args=(self._work,))
        try:
            process.start()
        except OSError as error:  # it was killed before it had been told what to do
            self._replace(str(error))
            return
        self._processes.append(process)
        if self._times_told > 0:  # told meanwhile, when this one was not yet known
            process.terminate()

    def _replace(self, why: str) -> None:
        if self._times_told == 0:
            log.error("a worker ended and is replaced", extra={"reason": why})
            time.sleep(max(0, self._next_start - time.monotonic()))
            self._start()

    def _stop(self, *_: object) -> None:
        self._times_told += 1
        if self._times_told == 1:
            for process in self._processes:
                process.terminate()


def _worker(work: Callable[[], None]) -> None:
    os.setsid()  # Ctrl-C at the terminal is the parent's to hear
    parent = multiprocessing.parent_process()

    def end_with_parent() -> None:
        if parent is not None:
            parent.join()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    work()
