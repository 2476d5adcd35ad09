"""A program that adopts the orphans of another, and kills all of them on request.

Patroni leaves its PostgreSQL to process 1, so that neither a signal nor the death of the bench
would end it. `python subreaper.py FD COMMAND...` runs the command, and kills every descendant at
once when the other end of the pipe FD is closed: by `Node.kill`, or by the death of the bench.
"""

import ctypes
import glob
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# Of <linux/prctl.h>.
_SET_PDEATHSIG, _SET_CHILD_SUBREAPER = 1, 36


def _descendants(pid: int) -> Iterator[int]:
    """Yield all processes below this one, parents first."""
    # Path.glob raises an error where the process ends meanwhile.
    for listed in glob.iglob(f"/proc/{pid}/task/*/children"):  # noqa: PTH207
        with suppress(OSError):  # it has ended meanwhile
            for child in map(int, Path(listed).read_text().split()):
                yield child
                yield from _descendants(child)


def _kill_all() -> None:
    # Stopped first: no process outlives another, as if the machine had lost its power.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in list(_descendants(os.getpid())):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def _kill_at_the_end(pipe: int) -> None:
    os.read(pipe, 1)
    while True:
        _kill_all()


def main() -> None:
    """Run the command, and return when it and all of its orphans have ended."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_SET_PDEATHSIG, 0)
    prctl(_SET_CHILD_SUBREAPER, 1)
    os.setsid()  # Ctrl-C at the terminal must not reach any of them
    subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL)
    threading.Thread(target=_kill_at_the_end, args=[int(sys.argv[1])], daemon=True).start()
    with suppress(ChildProcessError):
        while True:
            os.wait()


if __name__ == "__main__":
    main()
