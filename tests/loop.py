"""The time that a piece of work takes the event loop."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from time import thread_time
from typing import Any

from app.errors import TooManyParameters


async def longest_step_s(work: Coroutine[Any, Any, object]) -> float:
    """The most CPU time that a piece of work takes the loop's thread before others have a turn."""
    longest_s = 0.0
    with suppress(StopIteration, TooManyParameters):
        while True:
            before = thread_time()
            try:
                future = work.send(None)
            finally:
                longest_s = max(longest_s, thread_time() - before)
            future._asyncio_future_blocking = False  # ours to wait for
            await asyncio.wait([future])
    return longest_s
