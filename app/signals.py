"""Signals that end the process, heard from its first moment on.

A process that is number 1, as in a container, does not end by a signal without a handler: one that
came while the modules were being imported would be lost, and with it the drain.
"""

import os
import signal
from types import FrameType
from typing import Final

# Python itself hears SIGINT from its start on, so that this one is replaced first.
ENDING: Final = (signal.SIGINT, signal.SIGTERM)
# What shells report of a process that a signal has ended.
EXIT_CODE_BASE = 128


def end_at_once() -> None:
    """Let SIGTERM and SIGINT end the process without a traceback: there is nothing to drain yet."""
    for number in ENDING:
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _end)


def interrupt() -> None:
    """Let SIGINT raise KeyboardInterrupt again, for commands that clean up after themselves."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, _: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(EXIT_CODE_BASE + number)  # number 1: the kernel has dropped the signal
