"""Work in a thread has ended when its caller goes on, also when that is cancelled meanwhile."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager

import pytest

from bench.testbed.process import PATIENCE_S
from bench.testbed.threads import enter_in_thread, in_thread


class Work:
    """Work that begins, waits for its permission to end, and ends."""

    def __init__(self, error: Exception | None = None) -> None:
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self.steps: list[str] = []
        self._error = error

    def do(self) -> str:
        """Do it."""
        self.has_begun.set()
        assert self.may_end.wait(PATIENCE_S)
        self.steps.append("done")
        if self._error is not None:
            raise self._error
        return "result"

    @contextmanager
    def server(self) -> Iterator[str]:
        """A server that takes as long to start."""
        yield self.do()
        self.steps.append("stopped")


async def cancel_meanwhile(task: asyncio.Task[str], work: Work) -> None:
    """Cancel a task twice while its thread works, and let the work end after that."""
    while not work.has_begun.is_set():
        await asyncio.sleep(0)
    try:
        for _ in range(2):
            task.cancel()
            await asyncio.wait([task], timeout=0.02)
            assert not task.done()
            assert work.steps == []
    finally:
        work.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_result_and_error_are_those_of_the_call() -> None:
    """Without a cancel, the caller gets the result or the error of the call."""
    assert await in_thread(int, "11", base=2) == 3
    with pytest.raises(ValueError, match="invalid literal"):
        await in_thread(int, "x")


@pytest.mark.parametrize("error", [None, OSError("not its own")])
async def test_cancelled_caller_waits_for_its_thread(error: Exception | None) -> None:
    """A cancel takes effect after the end of the thread, also after an error."""
    work = Work(error)
    await cancel_meanwhile(asyncio.create_task(in_thread(work.do)), work)
    assert work.steps == ["done"]


async def test_server_that_starts_during_a_cancel_is_stopped() -> None:
    """The stack exits a context manager that was entered during a cancel."""
    work = Work()

    async def serve() -> str:
        async with AsyncExitStack() as stack:
            stack.callback(work.steps.append, "folder removed")
            return await enter_in_thread(stack, work.server())

    await cancel_meanwhile(asyncio.create_task(serve()), work)
    assert work.steps == ["done", "stopped", "folder removed"]


async def test_server_that_does_not_start_is_not_stopped() -> None:
    """The error of a context manager that cannot be entered is the caller's."""
    work = Work(OSError("no disk"))
    work.may_end.set()
    with pytest.raises(OSError, match="no disk"):
        async with AsyncExitStack() as stack:
            await enter_in_thread(stack, work.server())
    assert work.steps == ["done"]
