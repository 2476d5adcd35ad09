"""An event loop in virtual time that runs one of its ready callbacks at random.

It has no selector: nothing in a simulation waits for the world outside. A process is a group of
callbacks that can be frozen and killed together.
"""

import asyncio
from asyncio import events
from collections.abc import Callable
from contextvars import Context, ContextVar, copy_context
from heapq import heappop, heappush
from random import Random
from typing import Any, TypeVarTuple, Unpack

_Ts = TypeVarTuple("_Ts")
PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)


class Stuck(Exception):
    """Nothing is ready and no timer runs: a deadlock, or an answer that never comes."""


class Process:
    """The callbacks of one gateway: those that are due while it is frozen are held back."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_frozen = self.is_dead = False
        self.held: list[asyncio.Handle] = []
        self.context = copy_context()
        self.context.run(PROCESS.set, self)


class _Handle(asyncio.Handle):
    __slots__ = ("process",)
    process: Process | None


class _Timer(asyncio.TimerHandle):
    __slots__ = ("process",)
    process: Process | None


class _Task(asyncio.Task[Any]):
    """A task whose hash is its number: sets of tasks have the same order in every run."""

    def __init__(self, number: int, work: Any, **options: Any) -> None:
        self.number = number  # before its registration, which hashes it
        super().__init__(work, **options)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class Loop(asyncio.BaseEventLoop):
    """Runs the ready callbacks in random order; when none is left, time moves to the next timer."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self._pick = random.random
        self._now_s = 0.0
        self._ready: list[_Handle | _Timer] = []
        # With a number, so that timers of one moment are never compared.
        self._timers: list[tuple[float, int, _Timer]] = []
        self._timer_number = 0
        self._tasks: list[_Task] = []
        self.steps = 0
        self.errors: list[BaseException] = []
        self._is_ending = False
        self.set_task_factory(self._make_task)
        self.set_exception_handler(self._note_error)

    def time(self) -> float:
        """The virtual time in seconds."""
        return self._now_s

    def call_soon(
        self,
        callback: Callable[[Unpack[_Ts]], object],
        *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        """See asyncio."""
        handle = _Handle(callback, args, self, context)
        handle.process = PROCESS.get() if context is None else context.get(PROCESS)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        """See asyncio."""
        timer = _Timer(when, callback, args, self, context)
        timer.process = PROCESS.get() if context is None else context.get(PROCESS)
        self._timer_number += 1
        heappush(self._timers, (when, self._timer_number, timer))
        return timer

    def call_later(
        self, delay: float, callback: Callable[[Unpack[_Ts]], object], *args: *_Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:  # fmt: skip
        """See asyncio."""
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def thaw(self, process: Process) -> None:
        """Run the callbacks of a process again, those that it has missed too."""
        process.is_frozen = False
        self._ready += process.held  # type: ignore[arg-type]
        process.held = []

    def end(self, processes: list[Process]) -> None:
        """Cancel all tasks, also those of dead processes, and run them to their end."""
        self._is_ending = True
        self.errors.clear()
        for process in processes:
            self.thaw(process)
        while left := [task for task in self._tasks if not task.done()]:
            for task in left:
                task.cancel()
            self.run_until_complete(asyncio.wait(left))
        self._tasks.clear()
        self.close()

    def _run_once(self) -> None:
        ready, timers = self._ready, self._timers
        if not ready and timers and timers[0][0] > self._now_s:
            self._now_s = timers[0][0]
        while timers and timers[0][0] <= self._now_s:
            ready.append(heappop(timers)[2])
        if not ready:
            raise Stuck
        place = int(self._pick() * len(ready))
        handle, ready[place] = ready[place], ready[-1]
        ready.pop()
        if handle._cancelled:
            return
        process = handle.process
        if process is not None and process.is_frozen:
            process.held.append(handle)
            return
        self.steps += 1
        handle._run()
        if self.errors:
            raise self.errors[0]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """A cancelled timer is passed over when it is due."""

    def _process_events(self, _: object) -> None:
        """There is no selector."""

    def _make_task(self, _: events.AbstractEventLoop, work: Any, **options: Any) -> _Task:
        task = _Task(len(self._tasks), work, loop=self, **options)
        self._tasks.append(task)
        return task

    def _note_error(self, _: events.AbstractEventLoop, context: dict[str, Any]) -> None:
        # A callback has failed: those are the simulation's own.
        if "handle" in context and not self._is_ending:
            self.errors.append(context["exception"])
