"""Bounded group commit. Knows nothing of events, Redis or SQL.

While one batch is being committed the next one gathers: the size of a batch finds its own level,
and an idle server answers after exactly one commit.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from app.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")


class WriteBuffer(Generic[Item, Result]):
    """Gathers items into batches, commits one batch at a time, and gives each item its result.

    `commit` gets a batch and returns one result or exception for each item, in order; what it
    raises goes to every caller of the batch. The work belongs to the buffer and not to
    the callers: one that goes away changes nothing.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
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
        self._waiting: deque[tuple[Item, int, asyncio.Future[Result]]] = deque()
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
        self._waiting.append((item, size_bytes, mailbox))
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

    async def _flush(self) -> None:
        while self._waiting:
            batch = self._take_batch()
            try:
                results = await self._commit([item for item, _, _ in batch])
                _deliver(batch, results)
            except Exception as error:  # noqa: BLE001 - handed to every caller of the batch
                _deliver(batch, [error] * len(batch))
            except asyncio.CancelledError:
                _deliver(batch, [Unavailable("cancelled")] * len(batch))
                raise
            finally:
                self._count -= len(batch)
                self._bytes -= sum(size_bytes for _, size_bytes, _ in batch)
        self._flusher = None

    def _take_batch(self) -> list[tuple[Item, int, asyncio.Future[Result]]]:
        batch = [self._waiting.popleft()]
        size_bytes = batch[0][1]
        while self._waiting and len(batch) < self._batch_max:
            size_bytes += self._waiting[0][1]
            if size_bytes > self._batch_max_bytes:
                break
            batch.append(self._waiting.popleft())
        return batch


def _deliver(
    batch: Sequence[tuple[Item, int, asyncio.Future[Result]]],
    results: Sequence[Result | Exception],
) -> None:
    for (_, _, mailbox), result in zip(batch, results, strict=True):
        if mailbox.done():
            continue  # its caller went away
        if isinstance(result, Exception):
            mailbox.set_exception(result)
        else:
            mailbox.set_result(result)
