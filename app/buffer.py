"""Bounded group commit. Knows nothing of events, Redis or SQL.

While one batch is being committed the next one gathers: the size of a batch finds its own level,
and an idle server answers after exactly one commit.

Every item has an owner, and no owner crowds out another: none may fill the buffer alone, and
batches are taken from all in turn.
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
# shared switches): alone it gets 4/5 of the buffer, two greedy ones get 4/9 each, and the rest lets
# the next one in.
SHARE = 4


class _Line(msgspec.Struct, Generic[Item, Result], eq=False):
    """The items of one owner in the buffer: those that wait for a batch, and the undecided ones."""

    owner: Hashable
    count: int = 0
    size_bytes: int = 0
    waiting: "deque[_Place[Item, Result]]" = msgspec.field(default_factory=deque)
    undecided: "deque[_Place[Item, Result]]" = msgspec.field(default_factory=deque)


class _Place(NamedTuple, Generic[Item, Result]):
    """An item in the buffer, the line of its owner, and the future that its caller awaits."""

    item: Item
    size_bytes: int
    line: _Line[Item, Result]
    future: asyncio.Future[Result]


class WriteBuffer(Generic[Item, Result]):
    """Gathers items into batches, commits one batch at a time, and gives each item its result.

    `commit` gets a batch and returns one result for each item, in order; its exception goes to
    every caller of the batch. An item whose result is `undecided` keeps its place and is committed
    by `commit_one`, while the next batch is not held up. The work belongs to the buffer and not to
    the callers: one that goes away changes nothing.
    """

    def __init__(
        self,
        commit: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        commit_one: Callable[[Item], Awaitable[Result]],
        *,
        undecided: Result,
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
        # An owner without items is forgotten: there are never more lines than items.
        self._lines: dict[Hashable, _Line[Item, Result]] = {}
        self._turns: deque[_Line[Item, Result]] = deque()  # the lines with waiting items
        self._undecided_turns: deque[_Line[Item, Result]] = deque()
        self._count = 0
        self._bytes = 0
        self._flusher: asyncio.Task[None] | None = None
        self._decider: asyncio.Task[None] | None = None
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None

    def __len__(self) -> int:
        """Return the number of items that were accepted and have no result yet."""
        return self._count

    async def submit(self, item: Item, owner: Hashable, size_bytes: int = 0) -> Result:
        """Return the result of `item` when it is committed.

        Raises Unavailable at once when the buffer is closed or has no room for this owner, and
        the exception of the commit.
        """
        if self._closed:
            raise Unavailable("buffer_closed")
        line = self._lines.get(owner) or _Line(owner)
        free, free_bytes = self._buffer_max - self._count, self._buffer_max_bytes - self._bytes
        if (
            line.count >= SHARE * free
            or line.size_bytes >= SHARE * free_bytes
            or size_bytes > free_bytes
        ):
            raise Unavailable("buffer_full")
        if self._loop is None:  # kept: looking it up costs a system call
            self._loop = asyncio.get_running_loop()
        # A caller that is cancelled cancels only this future.
        future: asyncio.Future[Result] = self._loop.create_future()
        if not line.count:
            self._lines[owner] = line
        if not line.waiting:
            self._turns.append(line)
        line.waiting.append(_Place(item, size_bytes, line, future))
        line.count += 1
        line.size_bytes += size_bytes
        self._count += 1
        self._bytes += size_bytes
        if self._flusher is None:
            # Starts after all other work of this turn of the loop, so it finds those items too.
            self._flusher = self._loop.create_task(self._flush())
        return await future

    async def close(self) -> None:
        """Accept nothing more, and return when every accepted item has its result."""
        self._closed = True
        if self._flusher is not None:
            await self._flusher
        if self._decider is not None:
            await self._decider

    async def _flush(self) -> None:
        try:
            while self._turns:
                batch, items = self._take_batch()
                try:
                    results = await self._commit(items)
                except Exception as error:  # noqa: BLE001 - handed to every caller of the batch
                    self._fail(batch, error)
                except asyncio.CancelledError:
                    self._fail(batch, Unavailable("cancelled"))
                    raise
                else:
                    self._deliver(batch, results)
        finally:
            self._flusher = None

    async def _decide(self) -> None:
        """Commit the undecided items one by one, an item of each owner in turn."""
        try:
            while self._undecided_turns:
                line = self._undecided_turns.popleft()
                place = line.undecided.popleft()
                if line.undecided:
                    self._undecided_turns.append(line)
                try:
                    result = await self._commit_one(place.item)
                except Exception as error:  # noqa: BLE001 - handed to its caller
                    self._fail([place], error)
                except asyncio.CancelledError:
                    self._fail([place], Unavailable("cancelled"))
                    raise
                else:
                    self._deliver([place], [result])
        finally:
            self._decider = None

    def _take_batch(self) -> tuple[list[_Place[Item, Result]], list[Item]]:
        """Return an item of each owner in turn, again and again, until the batch is full."""
        batch: list[_Place[Item, Result]] = []
        items: list[Item] = []
        size_bytes = 0
        passed_over: list[_Line[Item, Result]] = []
        while self._turns and len(batch) + len(passed_over) < self._batch_max:
            line = self._turns.popleft()
            if batch and size_bytes + line.waiting[0].size_bytes > self._batch_max_bytes:
                # Too large for this batch: the small items of other owners go on.
                passed_over.append(line)
                continue
            place = line.waiting.popleft()
            batch.append(place)
            items.append(place.item)
            size_bytes += place.size_bytes
            if line.waiting:
                self._turns.append(line)
        self._turns.extendleft(reversed(passed_over))
        return batch, items

    def _deliver(self, batch: Sequence[_Place[Item, Result]], results: Sequence[Result]) -> None:
        left = []
        for place, result in zip(batch, results, strict=True):
            if result is self._undecided:
                self._postpone(place)
                continue
            if not place.future.done():  # its caller may have gone away
                place.future.set_result(result)
            left.append(place)
        self._leave(left)

    def _fail(self, batch: Sequence[_Place[Item, Result]], error: Exception) -> None:
        for place in batch:
            if not place.future.done():
                place.future.set_exception(error)
        self._leave(batch)

    def _postpone(self, place: _Place[Item, Result]) -> None:
        line = place.line
        if not line.undecided:
            self._undecided_turns.append(line)
        line.undecided.append(place)
        if self._decider is None:
            self._decider = asyncio.create_task(self._decide())

    def _leave(self, places: Sequence[_Place[Item, Result]]) -> None:
        for _, size_bytes, line, _ in places:
            line.count -= 1
            line.size_bytes -= size_bytes
            self._count -= 1
            self._bytes -= size_bytes
            if not line.count:
                del self._lines[line.owner]
