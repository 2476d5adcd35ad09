"""Waiting for other processes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from bench.testbed.process import PATIENCE_S, POLL_S

_Found = TypeVar("_Found")


async def until_true(
    condition: Callable[[], Awaitable[_Found | None]], patience_s: float = PATIENCE_S
) -> _Found:
    """Return the result of an awaited condition once it is true; raises TimeoutError."""
    async with asyncio.timeout(patience_s):
        while not (found := await condition()):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(POLL_S)
        return found
