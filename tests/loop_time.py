"""Time for which each call holds an event loop, as CPU time: a busy machine adds nothing to it."""

import asyncio
import gc
import time
from collections.abc import Coroutine
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")


def run_measured(work: Coroutine[Any, Any, T]) -> tuple[T, list[float]]:
    """Run a coroutine in a loop of its own; return its result and the seconds of each call.

    The loop is Python's own: uvloop does not report its calls.
    """
    calls_s: list[float] = []
    run = asyncio.Handle._run

    def measured(handle: asyncio.Handle) -> None:
        began = time.thread_time()
        run(handle)
        calls_s.append(time.thread_time() - began)

    gc.collect()  # the garbage of other tests is not this one's to collect
    with (
        patch.object(asyncio.Handle, "_run", measured),
        asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner,
    ):
        return runner.run(work), calls_s
