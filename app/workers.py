"""Several workers on one host: processes that accept connections on one socket.

Sanic's own manager does not replace a worker that was killed, and kills the whole process group,
whoever else is in it, when a signal comes while a worker starts.
"""

import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from math import inf
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess

from prometheus_client.multiprocess import mark_process_dead

# A worker that ends at once, again and again, must not keep the machine busy.
REPLACE_AFTER_S = 1.0
LOOK_S = 1.0
TELL_AGAIN_S = 2.0

log = logging.getLogger(__name__)


def run(work: Callable[[], None], number: int) -> None:
    """Run `work` in `number` processes until SIGTERM or SIGINT, and replace those that end."""
    with tempfile.TemporaryDirectory(prefix="flokit-metrics-") as folder:
        # The workers count into files there, so that each of them can tell the sum of all.
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        _Workers(work, number).run()


class _Workers:
    def __init__(self, work: Callable[[], None], number: int) -> None:
        self._work = work
        self._number = number
        self._stopping = threading.Event()
        self._told_at = inf
        self._processes: list[SpawnProcess] = []

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for _ in range(self._number):
            self._start()
        while self._processes:
            ended = wait([process.sentinel for process in self._processes], LOOK_S)
            if time.monotonic() - self._told_at > TELL_AGAIN_S:
                # A signal is lost on a loop that is just being set up. In a drain, which has long
                # begun by now, it is ignored.
                self._terminate()
            for process in [p for p in self._processes if p.sentinel in ended]:
                self._processes.remove(process)
                process.join()
                mark_process_dead(process.pid)  # type: ignore[no-untyped-call]
                self._replace(f"exit code {process.exitcode}")

    def _start(self) -> None:
        if self._stopping.is_set():
            return
        process = multiprocessing.get_context("spawn").Process(target=_worker, args=(self._work,))
        try:
            process.start()
        except OSError as error:  # it was killed before it had been told what to do
            self._replace(str(error))
            return
        self._processes.append(process)
        if self._stopping.is_set():  # told meanwhile, when this one was not yet known
            process.terminate()

    def _replace(self, why: str) -> None:
        if not self._stopping.is_set():
            log.error("a worker ended and is replaced", extra={"reason": why})
            time.sleep(REPLACE_AFTER_S)
            self._start()

    def _stop(self, *_: object) -> None:
        self._stopping.set()
        self._terminate()

    def _terminate(self) -> None:
        self._told_at = time.monotonic()
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
