"""Work apart from the event loop: one thread, and a limit on the work that waits for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

from app.errors import Unavailable

P = ParamSpec("P")
R = TypeVar("R")


class Apart:
    """Runs functions in a thread of its own, one after another."""

    def __init__(self, name: str, waiting_max: int) -> None:
        # One thread: several would compete with the event loop for the interpreter's lock.
        self.thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self.waiting = 0
        self._waiting_max = waiting_max

    async def run(
        self, size: int, function: Callable[P, R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        """Return the result of a function; raises Unavailable where its size exceeds the limit."""
        if self.waiting + size > self._waiting_max:
            raise Unavailable("buffer_full")
        self.waiting += size

        def release(_: object) -> None:
            self.waiting -= size

        running = asyncio.get_running_loop().run_in_executor(
            self.thread, partial(function, *arguments, **options)
        )
        running.add_done_callback(release)
        # Shielded: queued work takes memory, and is counted, even if its caller hangs up.
        return await asyncio.shield(running)
