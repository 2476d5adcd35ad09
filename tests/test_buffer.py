"""The write buffer: batches, limits, callers that go away, and an end that loses nothing."""

import asyncio
from collections.abc import Sequence

import pytest

from app.buffer import WriteBuffer
from app.errors import Unavailable


class Store:
    """Commits numbers, when it is let, and remembers the batches."""

    def __init__(self, **limits: int) -> None:
        self.batches: list[list[int]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        known = {"batch_max": 3, "buffer_max": 5, "batch_max_bytes": 100, "buffer_max_bytes": 1000}
        self.buffer: WriteBuffer[int, str] = WriteBuffer(self.commit, **(known | limits))

    async def commit(self, items: Sequence[int]) -> list[str | Exception | asyncio.Task[str]]:
        """Return the result of each number; 666 fails them all."""
        self.batches.append(list(items))
        await self.is_open.wait()
        if 666 in items:
            raise LookupError("all of them")
        return [self.result(item) for item in items]

    def result(self, item: int) -> str | Exception | asyncio.Task[str]:
        """Return what became of one number."""
        if item == 99:
            return asyncio.create_task(self.late())
        return ValueError("unlucky") if item == 13 else f"{item} done"

    async def late(self) -> str:
        """Return long after the batch."""
        await asyncio.sleep(0.05)
        return "late"

    def submit(self, *items: int, size_bytes: int = 0) -> list[asyncio.Task[str]]:
        """Submit items at once."""
        return [asyncio.create_task(self.buffer.submit(item, size_bytes)) for item in items]


async def test_batches_find_their_own_size() -> None:
    """What arrives together is one batch; what arrives during a commit is the next."""
    store = Store()
    tasks = store.submit(1, 2)
    store.is_open.clear()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += store.submit(3, 4)
    await asyncio.sleep(0)
    store.is_open.set()
    assert await asyncio.gather(*tasks) == ["1 done", "2 done", "3 done", "4 done"]
    assert store.batches == [[1, 2], [3, 4]]


async def test_batch_is_limited_by_number_and_by_bytes() -> None:
    """Neither many small items nor a few large ones make a batch too large."""
    store = Store()
    await asyncio.gather(*store.submit(1, 2, 3, 4))
    await asyncio.gather(*store.submit(5, 6, 7, size_bytes=60))
    assert store.batches == [[1, 2, 3], [4], [5], [6], [7]]


async def test_full_means_refuse_at_once() -> None:
    """Beyond the number or the bytes there is no waiting, and later there is room again."""
    store = Store()
    store.is_open.clear()
    tasks = store.submit(1, 2, 3, 4, 5)
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="buffer_full"):
        await store.buffer.submit(6)
    store.is_open.set()
    await asyncio.gather(*tasks)
    assert await store.buffer.submit(6) == "6 done"
    with pytest.raises(Unavailable, match="buffer_full"):
        await store.buffer.submit(7, size_bytes=1001)


async def test_errors_go_to_their_own_callers() -> None:
    """An item's error is its own; what commit raises is everybody's, and the next batch works."""
    store = Store()
    results = await asyncio.gather(*store.submit(12, 13, 14), return_exceptions=True)
    assert [str(result) for result in results] == ["12 done", "unlucky", "14 done"]
    results = await asyncio.gather(*store.submit(1, 666), return_exceptions=True)
    assert [str(result) for result in results] == ["all of them"] * 2
    assert await store.buffer.submit(2) == "2 done"


async def test_caller_that_goes_away_takes_nothing_along() -> None:
    """Its item is committed with the others, waiting or not, early or late."""
    store = Store()
    store.is_open.clear()
    tasks = store.submit(1, 2, 99, 4)
    await asyncio.sleep(0)
    for gone in (0, 2, 3):
        tasks[gone].cancel()
    store.is_open.set()
    assert await tasks[1] == "2 done"
    await store.buffer.close()
    assert store.batches == [[1, 2, 99], [4]]
    assert len(store.buffer) == 0


async def test_late_result_holds_nobody_up() -> None:
    """A result that takes longer is waited for by its caller alone, and by the end."""
    store = Store()
    late, quick = store.submit(99, 1)
    assert await quick == "1 done"
    assert await store.buffer.submit(2) == "2 done"
    assert len(store.buffer) == 1
    await store.buffer.close()
    assert await late == "late"


async def test_close_commits_what_was_accepted() -> None:
    """After the end nothing is accepted, and everything accepted before has its result."""
    store = Store()
    tasks = store.submit(1, 2, 3, 4, 5)
    await asyncio.sleep(0)
    await store.buffer.close()
    assert [task.result() for task in tasks] == [f"{n} done" for n in range(1, 6)]
    with pytest.raises(Unavailable, match="buffer_closed"):
        await store.buffer.submit(6)
