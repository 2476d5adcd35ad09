"""The end of the process: by SIGTERM or SIGINT from its start on, and without joining threads.

The kernel discards a signal without a handler for process 1 of a container: one that arrives during
the imports would be lost.
"""

import os
import signal
import sys
from types import FrameType
from typing import Final, NoReturn

# SIGINT first: Python installs a handler for it at start-up.
ENDING: Final = (signal.SIGINT, signal.SIGTERM)
# A shell reports this plus the number of the signal that ended a process.
EXIT_CODE_BASE = 128


def end_at_once() -> None:
    """Make SIGTERM and SIGINT end the process without a traceback: there is nothing to drain."""
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


def interrupt() -> None:
    """Make SIGINT raise KeyboardInterrupt again, for commands that clean up after themselves."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def exit_without_threads() -> NoReturn:
    """End the process with exit code 0, without waiting for its threads.

    Python would join a thread that is blocked in a file read or a name look-up.
    """
    sys.stdout.flush()
    os._exit(0)


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(EXIT_CODE_BASE + number)  # as process 1: the kernel has discarded the signal
