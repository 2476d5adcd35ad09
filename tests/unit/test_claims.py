"""The claims with simulated time and connections: time limit, backoff, a late loop."""

import asyncio
import selectors
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

import pytest

from app.claims import Claim
from app.claims.connection import Endpoint
from app.claims.redis import RedisClaims

T = TypeVar("T")
EVENT = b"x" * 16


class Clock(selectors.SelectSelector):
    """The time of a loop: to wait for it is to add to it."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen"
        self.now_s += timeout
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop that waits for nothing."""

    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now_s


class Redis:
    """A server that claims nothing and answers after a delay; opens connections to itself."""

    def __init__(self, answer: bytes = b"s", delay_s: float = 0.0) -> None:
        self.answer, self.delay_s = answer, delay_s
        self.opened = 0

    def connect(self, endpoint: Endpoint) -> "Connection":
        """Return a connection that is not open yet."""
        assert endpoint["host"] == "simulated"
        self.opened += 1
        return Connection(self)

    def claims(self) -> RedisClaims:
        """Return claims in this Redis."""
        return RedisClaims(
            "redis://simulated/0",
            generation=lambda: "generation", lease_s=15, seen_window_d=1, connect=self.connect,
        )  # fmt: skip


class Connection:
    """A connection to a simulated Redis."""

    is_connected = False

    def __init__(self, redis: Redis) -> None:
        self.redis = redis

    async def connect(self) -> None:
        self.is_connected = True

    async def can_read(self) -> bool:
        return False

    async def send_packed_command(self, command: Sequence[bytes]) -> None:
        assert command

    async def read_response(self) -> bytes:
        await asyncio.sleep(self.redis.delay_s)
        return self.redis.answer

    async def disconnect(self, nowait: bool = False) -> None:
        del nowait
        self.is_connected = False


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in simulated time."""
    with asyncio.Runner(loop_factory=Loop) as runner:
        return runner.run(work)


def now_s() -> float:
    """The simulated time."""
    return asyncio.get_running_loop().time()


def hold_the_loop(seconds: float) -> None:
    """Let time pass in which the loop runs nothing."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    loop.clock.now_s += seconds


@pytest.mark.parametrize("started_after_s", [0.0, 0.013, 0.02, 0.1, 1.7])
def test_each_claim_has_its_whole_time(started_after_s: float) -> None:
    """A claim is given up after 100 ms, whenever the claims beside it have begun."""

    async def claim_after(claims: RedisClaims, pause_s: float) -> float:
        await asyncio.sleep(pause_s)
        began_s = now_s()
        assert await claims.claim([EVENT]) == [Claim.SEEN]
        return now_s() - began_s

    async def both() -> Sequence[float]:
        redis = Redis()
        claims = redis.claims()
        await claims.claim([EVENT])  # discovers the primary
        redis.delay_s = 0.099
        took = await asyncio.gather(claim_after(claims, 0), claim_after(claims, started_after_s))
        redis.delay_s = 9.0
        began_s = now_s()
        assert await claims.claim([EVENT]) == [Claim.HELD]
        await claims.close()
        return [*took, now_s() - began_s]

    assert run(both()) == pytest.approx([0.099, 0.099, 0.1])


def test_close_leaves_calls_their_time_limit() -> None:
    """A call that is under way when the claims are closed, or begins later, is given up."""

    async def release() -> None:
        redis = Redis(delay_s=9.0)
        claims = redis.claims()
        under_way = asyncio.create_task(claims.claim([EVENT]))
        await asyncio.sleep(0.01)
        await claims.close()
        assert await under_way == [Claim.HELD]
        assert now_s() == pytest.approx(0.1)
        await asyncio.sleep(2.0)  # the backoff is over
        await claims.claim([EVENT])
        assert now_s() == pytest.approx(2.2)

    run(release())


def test_failure_is_followed_by_a_backoff() -> None:
    """For a second after a failure events are held at once; then Redis is used again."""

    async def claim() -> None:
        redis = Redis(delay_s=9.0)
        claims = redis.claims()
        assert await claims.claim([EVENT]) == [Claim.HELD]
        redis.delay_s = 0.0
        failed_s = now_s()
        for _ in range(5):
            assert await claims.claim([EVENT]) == [Claim.HELD]
        assert (now_s(), redis.opened) == (failed_s, 1)
        bypassed = [claims.is_bypassed]
        await asyncio.sleep(1.0)
        assert await claims.claim([EVENT]) == [Claim.SEEN]
        assert redis.opened == 2
        assert [*bypassed, claims.is_bypassed] == [True, False]
        await claims.close()

    run(claim())


def test_time_of_a_held_loop_does_not_count() -> None:
    """An answer that was in time is read after the loop was held; a silent Redis is given up."""

    async def claim(delay_s: float) -> Claim:
        claims = Redis(delay_s=delay_s).claims()
        claiming = asyncio.create_task(claims.claim([EVENT]))
        await asyncio.sleep(0.01)
        for _ in range(10):
            hold_the_loop(0.5)
            await asyncio.sleep(0.001)
        [found] = await claiming
        await claims.close()
        return found

    assert run(claim(5.05)) is Claim.SEEN
    assert run(claim(60.0)) is Claim.HELD
