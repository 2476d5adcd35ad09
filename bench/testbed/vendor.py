"""A simulated vendor: it sends callbacks as Adjust does, and tries again when Adjust would.

Adjust retries where the endpoint is unreachable or answers 5xx, up to six times in 24 hours, and
never after any other answer (contract, section 1). Its hours are seconds here.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random

from bench.faults.ledger import Ledger, Told, understand
from bench.faults.stories import Author, Delivery, Story
from bench.testbed.caller import Caller

RETRY_AFTER_S = (0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
ANSWER_TIMEOUT_S = 4.0
CONNECTIONS_MAX = 128
# Deliveries that are under way or wait for their retry; beyond it nothing new is begun.
UNDER_WAY_MAX = 4_000
HANG_UP_WITHIN_S = 0.02
STALL_S = 0.1


class Vendor:
    """Sends the stories of an author to gateways, at most `rate` a second, and keeps the ledger."""

    def __init__(self, author: Author, ports: Sequence[int], rate: float) -> None:
        self.ledger = Ledger()
        self._author = author
        self._lines = [_Line(port) for port in ports]
        self._pace_s = 1 / rate
        self._next_at = 0.0
        self.begun = 0
        self._later: dict[int, list[tuple[Story, Delivery]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._defects: list[BaseException] = []

    @property
    def connections(self) -> int:
        """How many connections have been opened so far."""
        return sum(line.opened for line in self._lines)

    async def send(self, until: int) -> None:
        """Begin every story up to this number, not included; returns before all have ended."""
        while self.begun < until:
            await self._wait_for_turn()
            story = self._author.write(self.begun)
            for delivery in story.deliveries:
                if delivery.after:
                    due = self.begun + delivery.after
                    self._later.setdefault(due, []).append((story, delivery))
                else:
                    self._start(story, delivery)
            for late_story, late in self._later.pop(self.begun, ()):
                self._start(late_story, late)
            self.begun += 1

    async def finish(self) -> None:
        """Send what was left for later, and return when every delivery has ended.

        Raises what a delivery has raised, which is a defect of the bench.
        """
        for due in sorted(self._later):
            for story, delivery in self._later.pop(due):
                await self._wait_for_turn()
                self._start(story, delivery)
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._defects:
            raise self._defects[0]

    async def insist(self) -> list[int]:
        """Send once more what was given up; returns the numbers of the stories that have failed.

        Whoever fails again when all is well again would fail for ever.
        """
        given_up = sorted(set(self.ledger.given_up))
        told = [await self.deliver_once(self._author.write(number), number) for number in given_up]
        return [number for number, last in zip(given_up, told, strict=True) if not last.is_final]

    async def close(self) -> None:
        """Give up whatever is under way."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        for line in self._lines:
            line.close()

    async def deliver_once(self, story: Story, process: int) -> Told:
        """Send a story's first delivery to one gateway, without retries."""
        return await self._attempt(story.number, story.deliveries[0].request, process)

    async def _wait_for_turn(self) -> None:
        while len(self._under_way) >= UNDER_WAY_MAX:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        now = time.monotonic()
        # What a stall has held up is not caught up with: it would come all at once.
        self._next_at = max(self._next_at + self._pace_s, now - STALL_S)
        if self._next_at > now:
            await asyncio.sleep(self._next_at - now)

    def _start(self, story: Story, delivery: Delivery) -> None:
        self.ledger.callbacks += 1
        task = asyncio.create_task(self._deliver(story, delivery))
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (defect := task.exception()) is not None:
            self._defects.append(defect)

    async def _deliver(self, story: Story, delivery: Delivery) -> None:
        number = story.number
        # Another one for each: twins do not try again as one.
        random = Random(f"{self._author.seed} {self.ledger.callbacks}")  # noqa: S311 - repeatable
        process = delivery.process
        if delivery.hangs_up_after is not None:
            await self._hang_up(number, delivery, random)
        for pause_s in (*RETRY_AFTER_S, None):
            if (await self._attempt(number, delivery.request, process)).is_final:
                return
            if pause_s is not None:
                await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            process = random.randrange(len(self._lines))
        self.ledger.given_up.append(number)

    async def _attempt(self, number: int, request: bytes, process: int) -> Told:
        async with self._lines[process % len(self._lines)].caller() as caller:
            answer = await caller.send(request, ANSWER_TIMEOUT_S)
        told = understand(answer)
        self.ledger.note(number, told, answer.answered_at)
        return told

    async def _hang_up(self, number: int, delivery: Delivery, random: Random) -> None:
        assert delivery.hangs_up_after is not None
        part = delivery.request[: int(len(delivery.request) * delivery.hangs_up_after)]
        async with self._lines[delivery.process % len(self._lines)].caller() as caller:
            await caller.hang_up(part, random.uniform(0, HANG_UP_WITHIN_S))
        self.ledger.note(number, Told.HUNG_UP, time.time())


class _Line:
    """The keep-alive connections to one gateway."""

    def __init__(self, port: int) -> None:
        self.opened = 0
        self._port = port
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)
        self._idle: list[Caller] = []

    @asynccontextmanager
    async def caller(self) -> AsyncIterator[Caller]:
        async with self._room:
            caller = self._take()
            try:
                yield caller
            except BaseException:
                caller.close()
                raise
            if not caller.is_closed:
                self._idle.append(caller)

    def _take(self) -> Caller:
        while self._idle:
            caller = self._idle.pop()
            if not caller.is_closed:
                return caller
        self.opened += 1
        return Caller(self._port)

    def close(self) -> None:
        for caller in self._idle:
            caller.close()
