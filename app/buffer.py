"""Bounded group commit. Knows nothing of events, Redis or SQL.

While one batch is being committed the next one fills: the size of a batch adapts to the load, and
an idle server answers after exactly one commit.

Every item has an owner. No owner can fill the buffer alone, and batches are taken from all owners
round robin.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Generic, NamedTuple, TypeVar

import msgspec

from app.errors import Unavailable

Item = TypeVar("Item")
Result = TypeVar("Result")

# An owner may hold this many times the free room (the dynamic threshold of Choudhury and Hahne for
# shared-memory switches): one greedy owner gets 4/5 of the buffer, two get 4/9 each, and the rest
# admits another owner.
SHARE = 4


class _Queue(msgspec.Struct, Generic[Item, Result], eq=False):
    """The items of one owner in the buffer: waiting for a batch, or undecided."""

    owner: Hashable
    count: int = 0
    size_bytes: int = 0
    waiting: "deque[_Entry[Item, Result]]" = msgspec.field(default_factory=deque)
    undecided: "deque[_Entry[Item, Result]]" = msgspec.field(default_factory=deque)


class _Entry(NamedTuple, Generic[Item, Result]):
    """An item in the buffer, the queue of its owner, and the future that its caller awaits."""

    item: Item
    size_bytes: int
    queue: _Queue[Item, Result]
    future: asyncio.Future[Result]


class WriteBuffer(Generic[Item, Result]):
    """Groups items into batches, commits one batch at a time, and returns each item's result.

    `commit` takes a batch and returns one result for each item, in order; its exception is raised
    in every caller of the batch. An item with the result `undecided` stays in the buffer and is
    committed by `commit_one`, without delaying the next batch; None leaves none undecided. The work
    belongs to the buffer, not to the callers: the cancellation of a caller changes nothing.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        commit_one: Callable[[Item], Awaitable[Result]] | None = None,
        *,
        undecided: Result | None = None,
        batch_max: int,
        buffer_max: int,
        batch_max_bytes: int,
        buffer_max_bytes: int,
    ) -> None:
        self._commit = commit
        self._commit_one = commit_one
        self._undecided = undecided
        self._batch_max = batch_max
        self._buffer_max = buffer_max
        self._batch_max_bytes = batch_max_bytes
        self._buffer_max_bytes = buffer_max_bytes
        # A queue without items is removed: there are never more queues than items.
        self._queues: dict[Hashable, _Queue[Item, Result]] = {}
        self._rotation: deque[_Queue[Item, Result]] = deque()  # queues with waiting items
        self._undecided_rotation: deque[_Queue[Item, Result]] = deque()
        self._count = 0
        self._bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._decider: asyncio.Task[None] | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        """Return the number of accepted items without a result."""
        return self._count

    async def submit(self, item: Item, owner: Hashable, size_bytes: int = 0) -> Result:
        """Commit `item` with a batch, and return its result.

        Raises Unavailable at once if the buffer is closed or has no room for this owner, and
        any exception of the commit.
        """
        if self._closed:
            raise Unavailable("buffer_closed")
        queue = self._queues.get(owner) or _Queue(owner)
        free, free_bytes = self._buffer_max - self._count, self._buffer_max_bytes - self._bytes
        if (
            queue.count >= SHARE * free
            or queue.size_bytes >= SHARE * free_bytes
            or size_bytes > free_bytes
        ):
            raise Unavailable("buffer_full")
        if self._loop is None:  # cached: the look-up costs a system call
            self._loop = asyncio.get_running_loop()
        # A caller that is cancelled cancels only this future.
        future: asyncio.Future[Result] = self._loop.create_future()
        if not queue.count:
            self._queues[owner] = queue
        if not queue.waiting:
            self._rotation.append(queue)
        queue.waiting.append(_Entry(item, size_bytes, queue, future))
        queue.count += 1
        queue.size_bytes += size_bytes
        self._count += 1
        self._bytes += size_bytes
        if self._flusher is None:
            # Runs after all callbacks of this loop iteration, and takes their items too.
            self._flusher = self._loop.create_task(self._flush())
        return await future

    async def close(self) -> None:
        """Accept no more items, and return once every accepted item has its result."""
        self._closed = True
        if self._flusher is not None:
            await self._flusher
        if self._decider is not None:
            await self._decider

    async def _flush(self) -> None:
        try:
            while self._rotation:
                batch, items = self._take_batch()
                try:
                    results = await self._commit(items)
                    if len(results) != len(items):
                        raise ValueError("commit returned a wrong number of results")  # a defect
                except Exception as error:  # noqa: BLE001 - raised in every caller of the batch
                    self._fail(batch, error)
                except asyncio.CancelledError:
                    self._fail(batch, Unavailable("cancelled"))
                    while self._rotation:
                        self._fail(self._take_batch()[0], Unavailable("cancelled"))
                    raise
                else:
                    self._deliver(batch, results)
        finally:
            self._flusher = None

    async def _decide(self) -> None:
        """Commit the undecided items one by one, round robin over their owners."""
        try:
            while self._undecided_rotation:
                queue = self._undecided_rotation.popleft()
                entry = queue.undecided.popleft()
                if queue.undecided:
                    self._undecided_rotation.append(queue)
                try:
                    if self._commit_one is None:
                        raise ValueError("there is no commit of an undecided item")  # a defect
                    result = await self._commit_one(entry.item)
                    if result is self._undecided:
                        raise ValueError("commit_one left its item undecided")  # a defect
                except Exception as error:  # noqa: BLE001 - raised in its caller
                    self._fail([entry], error)
                except asyncio.CancelledError:
                    self._fail([entry], Unavailable("cancelled"))
                    raise
                else:
                    self._deliver([entry], [result])
        finally:
            self._decider = None

    def _take_batch(self) -> tuple[list[_Entry[Item, Result]], list[Item]]:
        """Return the next batch and its items, taken from all owners round robin."""
        batch: list[_Entry[Item, Result]] = []
        items: list[Item] = []
        size_bytes = 0
        passed_over: list[_Queue[Item, Result]] = []
        while self._rotation and len(batch) + len(passed_over) < self._batch_max:
            queue = self._rotation.popleft()
            if batch and size_bytes + queue.waiting[0].size_bytes > self._batch_max_bytes:
                # Does not fit in this batch; smaller items of other owners may.
                passed_over.append(queue)
                continue
            entry = queue.waiting.popleft()
            batch.append(entry)
            items.append(entry.item)
            size_bytes += entry.size_bytes
            if queue.waiting:
                self._rotation.append(queue)
        self._rotation.extendleft(reversed(passed_over))
        return batch, items

    def _deliver(self, batch: Sequence[_Entry[Item, Result]], results: Sequence[Result]) -> None:
        done = []
        for entry, result in zip(batch, results, strict=True):
            if result is self._undecided:
                self._postpone(entry)
                continue
            if not entry.future.done():  # its caller may have been cancelled
                entry.future.set_result(result)
            done.append(entry)
        self._remove(done)

    def _fail(self, batch: Sequence[_Entry[Item, Result]], error: Exception) -> None:
        for entry in batch:
            if not entry.future.done():
                entry.future.set_exception(error)
        self._remove(batch)

    def _postpone(self, entry: _Entry[Item, Result]) -> None:
        queue = entry.queue
        if not queue.undecided:
            self._undecided_rotation.append(queue)
        queue.undecided.append(entry)
        if self._decider is None:
            self._decider = asyncio.create_task(self._decide())

    def _remove(self, entries: Sequence[_Entry[Item, Result]]) -> None:
        for _, size_bytes, queue, _ in entries:
            queue.count -= 1
            queue.size_bytes -= size_bytes
            self._count -= 1
            self._bytes -= size_bytes
            if not queue.count:
                del self._queues[queue.owner]
