"""Work in other threads that has ended when its caller goes on, also after a cancel."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack
from functools import partial
from typing import ParamSpec, TypeVar

_Entered = TypeVar("_Entered")
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


async def in_thread(
    function: Callable[_Parameters, _Result],
    *arguments: _Parameters.args,
    **named: _Parameters.kwargs,
) -> _Result:
    """Return the result of a call in another thread.

    A cancelled caller is cancelled after the end of the call: `asyncio.to_thread` would let it go
    on, beside a clean-up of the same servers and folders.
    """
    # Not a task, which the end of the event loop would cancel too.
    running = asyncio.get_running_loop().run_in_executor(
        None, partial(function, *arguments, **named)
    )
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()  # an error of the call gives way to the cancel
        raise cancelled
    return running.result()


async def enter_in_thread(
    stack: AsyncExitStack, manager: AbstractContextManager[_Entered]
) -> _Entered:
    """Enter a context manager in another thread; the stack exits it in one, also after a cancel."""
    entered = ExitStack()
    stack.push_async_callback(in_thread, entered.close)
    return await in_thread(entered.enter_context, manager)
