"""The write buffer: batches, limits, shares, callers that leave, and a close without loss."""

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.buffer import WriteBuffer
from app.errors import Unavailable

UNDECIDED = "undecided"


class Store:
    """Commits numbers, when permitted, and records the batches."""

    def __init__(self, **limits: int) -> None:
        self.batches: list[list[int]] = []
        self.is_open = asyncio.Event()
        self.is_open.set()
        known = {"batch_max": 3, "buffer_max": 6, "batch_max_bytes": 100, "buffer_max_bytes": 1000}
        self.buffer: WriteBuffer[int, str] = WriteBuffer(
            self.commit, self.commit_one, undecided=UNDECIDED, **(known | limits)
        )

    async def commit(self, items: Sequence[int]) -> list[str]:
        """Return the result of each number; 666 fails them all."""
        self.batches.append(list(items))
        await self.is_open.wait()
        if 666 in items:
            raise LookupError("all of them")
        return [self.result(item) for item in items if item != 404]

    def result(self, item: int) -> str:
        """Return the result of one number: 13 and 99 are undecided."""
        return UNDECIDED if item in (13, 99) else f"{item} done"

    async def commit_one(self, item: int) -> str:
        """Return the result of an undecided number, long after its batch."""
        await asyncio.sleep(0.05)
        if item == 13:
            raise ValueError("unlucky")
        return "late"

    async def let_one_batch_through(self) -> None:
        """Commit the batch that waits for it, so that the next one is taken."""
        self.is_open.set()
        self.is_open.clear()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def submit(
        self, *items: int, owner: str = "somebody", size_bytes: int = 0
    ) -> list[asyncio.Task[str]]:
        """Submit items at once."""
        return [asyncio.create_task(self.buffer.submit(item, owner, size_bytes)) for item in items]

    async def admit(
        self, *items: int, owner: str, size_bytes: int = 0
    ) -> dict[int, asyncio.Task[str]]:
        """Submit items one after another, and return the accepted ones."""
        before = len(self.buffer)
        tasks = dict(
            zip(items, self.submit(*items, owner=owner, size_bytes=size_bytes), strict=True)
        )
        await asyncio.sleep(0)
        admitted = {item: task for item, task in tasks.items() if not task.done()}
        for item in tasks.keys() - admitted.keys():
            assert isinstance(tasks[item].exception(), Unavailable)
        assert len(self.buffer) - before == len(admitted)
        return admitted


async def test_batches_find_their_own_size() -> None:
    """Items that arrive together are one batch; those that arrive during a commit are the next."""
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


async def test_full_buffer_refuses_at_once() -> None:
    """Beyond the number or the bytes there is no waiting, and later there is room again."""
    store = Store()
    store.is_open.clear()
    tasks = store.submit(1, 2, 3, 4, 5)
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="buffer_full"):
        await store.buffer.submit(6, "somebody")
    store.is_open.set()
    await asyncio.gather(*tasks)
    assert await store.buffer.submit(6, "somebody") == "6 done"
    with pytest.raises(Unavailable, match="buffer_full"):
        await store.buffer.submit(7, "somebody", size_bytes=1001)


async def test_errors_go_to_their_own_callers() -> None:
    """An item's error is its own; that of a commit is every item's, and the next batch works."""
    store = Store()
    results = await asyncio.gather(*store.submit(12, 13, 14), return_exceptions=True)
    assert [str(result) for result in results] == ["12 done", "unlucky", "14 done"]
    results = await asyncio.gather(*store.submit(1, 666), return_exceptions=True)
    assert [str(result) for result in results] == ["all of them"] * 2
    assert await store.buffer.submit(2, "somebody") == "2 done"


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


async def test_late_result_delays_only_its_caller() -> None:
    """A slower result is awaited by its caller alone, and by the close."""
    store = Store()
    late, quick = store.submit(99, 1)
    assert await quick == "1 done"
    assert await store.buffer.submit(2, "somebody") == "2 done"
    assert len(store.buffer) == 1
    await store.buffer.close()
    assert await late == "late"


async def test_wrong_number_of_results_fails_the_batch_alone() -> None:
    """A defect of the commit reaches its callers, and the next batch works."""
    store = Store()
    results = await asyncio.gather(*store.submit(1, 404), return_exceptions=True)
    assert [type(result) for result in results] == [ValueError] * 2
    assert await store.buffer.submit(2, "somebody") == "2 done"
    assert len(store.buffer) == 0


async def test_cancelled_close_leaves_no_caller_waiting() -> None:
    """A close that takes too long fails the items under way, and those that wait."""
    store = Store()
    store.is_open.clear()
    tasks = store.submit(1, 2, 3, 4, 5)
    await asyncio.sleep(0)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await store.buffer.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [Unavailable] * 5
    assert len(store.buffer) == 0


async def test_close_commits_accepted_items() -> None:
    """After the close nothing is accepted, and everything accepted before has its result."""
    store = Store()
    tasks = store.submit(1, 2, 3, 4, 5)
    await asyncio.sleep(0)
    await store.buffer.close()
    assert [task.result() for task in tasks] == [f"{n} done" for n in range(1, 6)]
    with pytest.raises(Unavailable, match="buffer_closed"):
        await store.buffer.submit(6, "somebody")


async def test_one_place_is_enough() -> None:
    """The smallest buffer takes one item, of any owner, and no more."""
    store = Store(batch_max=1, buffer_max=1)
    store.is_open.clear()
    assert await store.admit(1, owner="a")
    assert not await store.admit(2, owner="b")
    store.is_open.set()
    await store.buffer.close()


@pytest.mark.parametrize(
    ("limits", "size_bytes"),
    [({"buffer_max": 100}, 0), ({"buffer_max": 10_000, "buffer_max_bytes": 1000}, 10)],
    ids=["number", "bytes"],
)
async def test_one_owner_cannot_fill_the_buffer(limits: dict[str, int], size_bytes: int) -> None:
    """A lone owner gets four fifths of the number or of the bytes; the next ones find room."""
    store = Store(**limits)
    store.is_open.clear()
    many = range(1000, 1200)
    admitted = [await store.admit(*many, owner=owner, size_bytes=size_bytes) for owner in "abc"]
    assert [len(items) for items in admitted] == [80, 16, 4]
    assert not await store.admit(1, owner="d", size_bytes=size_bytes)
    store.is_open.set()
    await store.buffer.close()


async def test_greedy_owners_come_to_equal_shares() -> None:
    """Owners that always want more soon have equal shares, in any order of arrival."""
    store = Store(buffer_max=90)
    store.is_open.clear()
    many = range(1000, 1100)
    assert len(await store.admit(*many, owner="a")) == 72
    for _ in range(100):
        await store.let_one_batch_through()
        await store.admit(*many, owner="a")
        await store.admit(*many, owner="b")
    for owner in "ab":
        assert 36 <= store.buffer._queues[owner].count <= 44
    store.is_open.set()
    await store.buffer.close()


async def test_newcomer_is_in_the_next_batch() -> None:
    """Batches are taken from the owners in turn: an owner with few items waits for one only."""
    store = Store(buffer_max=100)
    store.is_open.clear()
    tasks = store.submit(*range(1000, 1010), owner="many")
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += store.submit(1, owner="few") + store.submit(2, 3, owner="some")
    await asyncio.sleep(0)
    store.is_open.set()
    await asyncio.gather(*tasks)
    assert store.batches[:3] == [[1000, 1001, 1002], [1003, 1, 2], [1004, 3, 1005]]


async def test_large_items_do_not_delay_small_ones() -> None:
    """An item that does not fit into a batch is the first of the next one; others use its place."""
    store = Store(batch_max=5, buffer_max=100, buffer_max_bytes=10_000)
    store.is_open.clear()
    tasks = store.submit(1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    tasks += store.submit(11, 12, owner="large", size_bytes=90)
    tasks += store.submit(21, 22, 23, 24, owner="small", size_bytes=5)
    tasks += store.submit(31, owner="huge", size_bytes=500)
    await asyncio.sleep(0)
    store.is_open.set()
    await asyncio.gather(*tasks)
    assert store.batches == [[1], [11, 21, 22], [31], [12, 23, 24]]


OWNERS = "abcd"


class Ledger(Store):
    """Asserts that no waiting owner is left out of as many batches as there are owners."""

    def __init__(self, **limits: int) -> None:
        super().__init__(**limits)
        self.sizes: dict[int, int] = {}
        self.left_out: Counter[str] = Counter()
        self.limits = limits

    async def commit(self, items: Sequence[int]) -> list[str]:
        """Check a batch, and commit it."""
        size_bytes = sum(self.sizes[item] for item in items)
        assert len(items) <= self.limits["batch_max"]
        assert size_bytes <= self.limits["batch_max_bytes"] or len(items) == 1
        self.left_out.update(str(queue.owner) for queue in self.buffer._rotation)
        for owner in {owner_of(item) for item in items}:
            self.left_out[owner] = 0
        assert max(self.left_out.values(), default=0) < len(OWNERS)
        return await super().commit(items)

    async def arrive(
        self, first: int, number: int, size_bytes: int
    ) -> dict[int, asyncio.Task[str]]:
        """Submit items of one owner, and check the limits."""
        buffer = self.buffer
        items = range(first, first + number * len(OWNERS), len(OWNERS))
        self.sizes |= dict.fromkeys(items, size_bytes)
        free = self.limits["buffer_max"] - len(buffer)
        free_bytes = self.limits["buffer_max_bytes"] - buffer._bytes
        is_newcomer = owner_of(first) not in buffer._queues
        admitted = await self.admit(*items, owner=owner_of(first), size_bytes=size_bytes)
        if is_newcomer and free and free_bytes and free_bytes >= size_bytes:
            assert admitted
        assert len(buffer) <= self.limits["buffer_max"]
        assert buffer._bytes <= self.limits["buffer_max_bytes"]
        assert sum(queue.count for queue in buffer._queues.values()) == len(buffer)
        return admitted


def owner_of(item: int) -> str:
    """The owner of an item."""
    return OWNERS[item % len(OWNERS)]


# Owner, number of items and the bytes of each; None is a commit.
steps = st.none() | st.tuples(
    st.integers(0, len(OWNERS) - 1), st.integers(1, 12), st.sampled_from((0, 1, 40, 99, 300))
)
limits = st.fixed_dictionaries(
    {
        "batch_max": st.integers(1, 8),
        "buffer_max": st.integers(1, 40),
        "batch_max_bytes": st.integers(1, 200),
        "buffer_max_bytes": st.integers(1, 1500),
    }
)


@given(steps=st.lists(steps, max_size=30), limits=limits)
def test_limits_and_shares_hold_in_any_order(
    steps: list[tuple[int, int, int] | None], limits: dict[str, int]
) -> None:
    """No limit is exceeded, no owner starves, a newcomer gets in, and all accepted is committed."""

    async def follow() -> None:
        ledger = Ledger(**limits)
        ledger.is_open.clear()
        admitted: dict[int, asyncio.Task[str]] = {}
        for place, step in enumerate(steps, 1):
            if step is None:
                await ledger.let_one_batch_through()
            else:
                owner, number, size_bytes = step
                admitted |= await ledger.arrive(1000 * place + owner, number, size_bytes)
        ledger.is_open.set()
        results = await asyncio.gather(*admitted.values())
        assert results == [f"{item} done" for item in admitted]
        committed = [item for batch in ledger.batches for item in batch]
        for name in OWNERS:
            order = [item for item in committed if owner_of(item) == name]
            assert order == [item for item in admitted if owner_of(item) == name]
        assert (len(ledger.buffer), ledger.buffer._bytes, ledger.buffer._queues) == (0, 0, {})

    asyncio.run(follow())
