"""The command line, killed at a step: `python -m tests.killed MODULE:NAME before|after COMMAND`.

SIGKILL at a known place, as `kill -9` gives it at an unknown one.
"""

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from functools import reduce
from importlib import import_module

from app.__main__ import main


def kill_at(step: str, moment: str) -> None:
    """Let the process kill itself before or after the first call of a coroutine function."""
    module, _, path = step.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, import_module(module))
    function: Callable[..., Awaitable[object]] = getattr(owner, name)

    async def killed(*arguments: object, **named: object) -> object:
        if moment == "after":
            await function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        raise SystemExit  # never reached

    setattr(owner, name, killed)


if __name__ == "__main__":
    kill_at(*sys.argv[1:3])
    sys.argv[1:3] = []
    sys.exit(main())
