"""Bounded group commit. Knows nothing of events, Redis or SQL.

While one batch is being committed the next one gathers: the size of a batch finds its own level,
and an idle server answers after exactly one commit.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from app.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Place(NamedTuple, Generic[Item, Result]):
    """An item in the buffer, and where its caller waits for the result."""

    item: Item
    size_bytes: int
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
        self._waiting: deque[_Place[Item, Result]] = deque()
        self._late: set[asyncio.Task[Result]] = set()
        self._count = 0
        self._bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        """Return the number of items that were accepted and have no result yet."""
        return self._count

    async def submit(self, item: Item, size_bytes: int = 0) -> Result:
        """Return the result of `item` when its batch is committed.

        Raises Unavailable at once when the buffer is full or closed, and whatever `commit`
        raised for the batch.
        """
        if self._closed:
            raise Unavailable("buffer_closed")
        if self._count >= self._buffer_max or self._bytes + size_bytes > self._buffer_max_bytes:
            raise Unavailable("buffer_full")
        # A caller that is cancelled cancels only this mailbox.
        mailbox: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Place(item, size_bytes, mailbox))
        self._count += 1
        self._bytes += size_bytes
        if self._flusher is None:
            # Starts after whatever else arrives in this turn of the loop, so it finds that too.
            self._flusher = asyncio.create_task(self._flush())
        return await mailbox

    async def close(self) -> None:
        """Accept nothing more, and return when everything accepted has its result."""
        self._closed = True
        if self._flusher is not None:
            await self._flusher
        await asyncio.gather(*self._late, return_exceptions=True)

    async def _flush(self) -> None:
        try:
            while self._waiting:
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
        batch = [self._waiting.popleft()]
        size_bytes = batch[0].size_bytes
        while self._waiting and len(batch) < self._batch_max:
            size_bytes += self._waiting[0].size_bytes
            if size_bytes > self._batch_max_bytes:
                break
            batch.append(self._waiting.popleft())
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
        self._count -= 1
        self._bytes -= place.size_bytes
        if place.mailbox.done():
            return  # its caller went away
        if isinstance(result, Exception):
            place.mailbox.set_exception(result)
        else:
            place.mailbox.set_result(result)
