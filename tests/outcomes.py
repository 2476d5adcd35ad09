"""The outcomes of callbacks at gateways that are processes, up to the final one."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from redis.asyncio import Redis

from bench.testbed.client import Answer
from bench.testbed.process import PATIENCE_S, POLL_S
from tests.gateways import Process, Target

Parameters = Mapping[str, str]
COMMITTED = {"written", "duplicate"}
CALLERS = 4


def callbacks(user: str) -> dict[str, Parameters]:
    """A callback without a stable ID and one with it, by their kind."""
    return {
        "usual": {"user_id": f"{user}-usual"},
        "stable": {"user_id": f"{user}-stable", "transaction_id": user},
    }


def told(answer: Answer) -> str:
    """The outcome in an answer: `written`, `duplicate` or `dropped`, or else its status."""
    if answer.status != 200:
        return str(answer.status)
    receipt = msgspec.json.decode(answer.body, type=dict[str, int])
    [word] = [word for word, number in receipt.items() if number and word != "received"]
    return word


async def outcome(gateway: Target, callback: Parameters) -> str:
    """Send a callback once, and return its outcome."""
    return told(await gateway.callback(**callback))


async def until_told(gateway: Target, callback: Parameters) -> str:
    """Send a callback again and again, as a vendor does, until it is final; return the outcome."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            word = await outcome(gateway, callback)
            if not word.isdigit():
                return word
            await asyncio.sleep(POLL_S)


async def forget(redis_url: str) -> None:
    """Empty a Redis."""
    async with Redis.from_url(redis_url) as redis:
        await redis.flushall()


def serving(database_url: str, redis_url: str, folder: Path, **settings: str) -> Process:
    """A gateway with a folder of its own inside of `folder`; `with` starts and stops it."""
    home = folder / f"gateway-{len(list(folder.iterdir()))}"
    home.mkdir()
    return Process(database_url, redis_url, home, **settings)


class Callers:
    """Some callers, each with one callback after the other, none of which is given up."""

    def __init__(self, gateway: Target, prefix: str) -> None:
        self._gateway = gateway
        self.prefix = prefix
        self._numbers = itertools.count()
        self.told: dict[str, str] = {}
        self._times: list[float] = []

    @asynccontextmanager
    async def calling(self) -> AsyncIterator[None]:
        """Call meanwhile; at the end each callback has its final answer."""
        over = asyncio.Event()
        callers = [asyncio.create_task(self._call(over)) for _ in range(CALLERS)]
        await self.more()
        try:
            yield
        finally:
            over.set()
            await asyncio.gather(*callers)

    async def more(self) -> None:
        """Return when some more have a final answer, of those that were sent from now on."""
        number = len(self.told) + 3 * CALLERS  # those under way now, and then some
        async with asyncio.timeout(PATIENCE_S):
            while len(self.told) < number:
                await asyncio.sleep(POLL_S)

    async def _call(self, over: asyncio.Event) -> None:
        for number in self._numbers:
            if over.is_set():
                return
            user = f"{self.prefix}-{number}"
            stable = {"transaction_id": user} if number % 2 else {}
            self.told[user] = await until_told(self._gateway, {"user_id": user, **stable})
            self._times.append(time.monotonic())

    def longest_gap_s(self) -> float:
        """The longest time without a final answer to any caller."""
        return max(after - before for before, after in itertools.pairwise(self._times))
