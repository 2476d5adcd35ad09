"""Bounded group commit. Knows nothing of events, Redis or SQL.

While one batch is being committed the next one gathers: the size of a batch finds its own level,
and an idle server answers after exactly one commit.

Every item has an owner, and no owner crowds out another: none may fill the buffer alone, and
batches are taken from all in turn.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from app.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


# An owner may hold this many times what is still free (the dynamic threshold of Choudhury and
# Hahne for shared switches): alone it gets 4/5 of the buffer, two greedy ones get 4/9 each, and
# what is left over lets the next one in.
SHARE = 4


class _Line(Generic[Item, Result]):
    """What one owner has in the buffer, and what of that still waits for its batch."""

    __slots__ = ("count", "owner", "size_bytes", "waiting")

    def __init__(self, owner: Hashable) -> None:
        self.owner = owner
        self.count = 0
        self.size_bytes = 0
        self.waiting: deque[_Place[Item, Result]] = deque()


class _Place(NamedTuple, Generic[Item, Result]):
    """An item in the buffer, its owner's line, and where its caller waits for the result."""

    item: Item
    size_bytes: int
    line: _Line[Item, Result]
    mailbox: asyncio.Future[Result]


class WriteBuffer(Generic[Item, Result]):
    """Gathers items into batches, commits one batch at a time, and gives each item its result.

    `commit` gets a batch and returns one result or exception for each item, in order; what it
    raises goes to every caller of the batch. A result may also be a task that is still at it: its
    item stays in the buffer, and the next batch does not wait. The work belongs to the buffer and
    not to the callers: one that goes away changes nothing.
    """

    def __init__(
        self,
        commit: Callable[
            [Sequence[Item]], Awaitable[Sequence[Result | Exception | asyncio.Task[Result]]]
        ],
        *,
        batch_max: int,
        buffer_max: int,
        batch_max_bytes: int,
        buffer_max_bytes: int,
    ) -> None:
        self._commit = commit
        self._batch_max = batch_max
        self._buffer_max = buffer_max
        self._batch_max_bytes = batch_max_bytes
        self._buffer_max_bytes = buffer_max_bytes
        # An owner without items is forgotten: there are never more than items.
        self._lines: dict[Hashable, _Line[Item, Result]] = {}
        self._turns: deque[_Line[Item, Result]] = deque()  # those of which something waits
        self._late: set[asyncio.Task[Result]] = set()
        self._count = 0
        self._bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        """Return the number of items that were accepted and have no result yet."""
        return self._count

    async def submit(self, item: Item, owner: Hashable, size_bytes: int = 0) -> Result:
        """Return the result of `item` when its batch is committed.

        Raises Unavailable at once when the buffer is closed or has no room for this owner, and
        whatever `commit` raised for the batch.
        """
        if self._closed:
            raise Unavailable("buffer_closed")
        line = self._lines.get(owner) or _Line(owner)
        if not self._has_room(line, size_bytes):
            raise Unavailable("buffer_full")
        if self._loop is None:  # kept: to ask for it costs a system call, 1 µs, each time
            self._loop = asyncio.get_running_loop()
        # A caller that is cancelled cancels only this mailbox.
        mailbox: asyncio.Future[Result] = self._loop.create_future()
        self._enter(_Place(item, size_bytes, line, mailbox))
        if self._flusher is None:
            # Starts after whatever else arrives in this turn of the loop, so it finds that too.
            self._flusher = self._loop.create_task(self._flush())
        return await mailbox

    async def close(self) -> None:
        """Accept nothing more, and return when everything accepted has its result."""
        self._closed = True
        if self._flusher is not None:
            await self._flusher
        await asyncio.gather(*self._late, return_exceptions=True)

    def _has_room(self, line: _Line[Item, Result], size_bytes: int) -> bool:
        free, free_bytes = self._buffer_max - self._count, self._buffer_max_bytes - self._bytes
        return (
            line.count < SHARE * free
            and line.size_bytes < SHARE * free_bytes
            and size_bytes <= free_bytes
        )

    def _enter(self, place: _Place[Item, Result]) -> None:
        line = place.line
        if not line.count:
            self._lines[line.owner] = line
        if not line.waiting:
            self._turns.append(line)
        line.waiting.append(place)
        line.count += 1
        line.size_bytes += place.size_bytes
        self._count += 1
        self._bytes += place.size_bytes

    async def _flush(self) -> None:
        try:
            while self._turns:
                batch = self._take_batch()
                try:
                    results = await self._commit([place.item for place in batch])
                except Exception as error:  # noqa: BLE001 - handed to every caller of the batch
                    results = [error] * len(batch)
                except asyncio.CancelledError:
                    self._deliver(batch, [Unavailable("cancelled")] * len(batch))
                    raise
                self._deliver(batch, results)
        finally:
            self._flusher = None

    def _take_batch(self) -> list[_Place[Item, Result]]:
        """Return an item of each owner in turn, again and again, until the batch is full."""
        batch: list[_Place[Item, Result]] = []
        size_bytes = 0
        passed_over: list[_Line[Item, Result]] = []
        while self._turns and len(batch) + len(passed_over) < self._batch_max:
            line = self._turns.popleft()
            if batch and size_bytes + line.waiting[0].size_bytes > self._batch_max_bytes:
                # Too large for this one: the small items of others are not held up by it.
                passed_over.append(line)
                continue
            batch.append(line.waiting.popleft())
            size_bytes += batch[-1].size_bytes
            if line.waiting:
                self._turns.append(line)
        self._turns.extendleft(reversed(passed_over))
        return batch

    def _deliver(
        self,
        batch: Sequence[_Place[Item, Result]],
        results: Sequence[Result | Exception | asyncio.Task[Result]],
    ) -> None:
        for place, result in zip(batch, results, strict=True):
            if isinstance(result, asyncio.Task):
                self._late.add(result)
                result.add_done_callback(partial(self._deliver_late, place))
            else:
                self._settle(place, result)

    def _deliver_late(self, place: _Place[Item, Result], task: asyncio.Task[Result]) -> None:
        self._late.discard(task)
        if task.cancelled():
            self._settle(place, Unavailable("cancelled"))
        else:
            error = task.exception()
            self._settle(place, error if isinstance(error, Exception) else task.result())

    def _settle(self, place: _Place[Item, Result], result: Result | Exception) -> None:
        line = place.line
        line.count -= 1
        line.size_bytes -= place.size_bytes
        self._count -= 1
        self._bytes -= place.size_bytes
        if not line.count:
            del self._lines[line.owner]
        if place.mailbox.done():
            return  # its caller went away
        if isinstance(result, Exception):
            place.mailbox.set_exception(result)
        else:
            place.mailbox.set_result(result)
