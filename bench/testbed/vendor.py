"""A simulated vendor: it sends callbacks as Adjust does, and retries as Adjust does.

Adjust retries after a 5xx or without an answer, up to six times in 24 hours, and never after
another answer. Its hours are seconds here. A retry has the bytes of the first request, but for a
number in callbacks that must be dropped.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random

from bench.testbed.client import Connection
from bench.testbed.deliveries import Delivery, EventGenerator, SimulatedEvent
from bench.testbed.drops import numbered
from bench.testbed.ledger import AnswerKind, Ledger, Sending, classify

RETRY_AFTER_S = (0.4, 0.8, 1.6, 3.2, 6.4, 12.8)
ANSWER_TIMEOUT_S = 4.0
CONNECTIONS_MAX = 128
# Deliveries in flight, or waiting for their retry; at the limit no new event begins.
UNDER_WAY_MAX = 4_000
HANG_UP_WITHIN_S = 0.02
STALL_S = 0.1


class Vendor:
    """Sends generated events to gateways, at most `rate` a second, and keeps the ledger."""

    def __init__(
        self,
        generator: EventGenerator,
        ports: Sequence[int],
        rate: float,
        *,
        retry_after_s: Sequence[float] = RETRY_AFTER_S,
    ) -> None:
        self.ledger = Ledger()
        self._retry_after_s = retry_after_s
        self._generator = generator
        self._pools = [_Pool(port) for port in ports]
        self._pace_s = 1 / rate
        self._next_at = 0.0
        self.begun = 0
        self._sendings = 0
        self._later: dict[int, list[tuple[SimulatedEvent, Delivery]]] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._defects: list[BaseException] = []

    @property
    def connections(self) -> int:
        """The number of connections opened so far."""
        return sum(pool.opened for pool in self._pools)

    async def send(self, until: int) -> None:
        """Begin every event below this number; returns before all have ended."""
        while self.begun < until:
            await self._wait_for_turn()
            event = self._generator.event(self.begun)
            for delivery in event.deliveries:
                if delivery.after:
                    due = self.begun + delivery.after
                    self._later.setdefault(due, []).append((event, delivery))
                else:
                    self._start(event, delivery)
            for late_event, late in self._later.pop(self.begun, ()):
                self._start(late_event, late)
            self.begun += 1

    async def finish(self) -> None:
        """Send the deliveries left for later, and return when every delivery has ended.

        Raises the exception of a delivery, which is a defect of the bench.
        """
        for due in sorted(self._later):
            for event, delivery in self._later.pop(due):
                await self._wait_for_turn()
                self._start(event, delivery)
        while self._under_way:
            await asyncio.wait(self._under_way)
        if self._defects:
            raise self._defects[0]

    async def send_again(self, since: float, until: float) -> None:
        """Begin anew each event with a final answer in this time, once: a restore has undone it."""
        entries = self.ledger.since(since)
        events = {
            entry.event for entry in entries if entry.kind.is_final and entry.answered_at <= until
        }
        for number in sorted(events):
            await self._wait_for_turn()
            event = self._generator.event(number)
            self._start(event, replace(event.deliveries[0], after=0, hangs_up_after=None))

    async def retry_given_up(self) -> list[int]:
        """Send each event that was given up once more; returns the numbers of new failures.

        A failure after the last fault would repeat for ever.
        """
        given_up = sorted(set(self.ledger.given_up))
        kinds = [
            await self.deliver_once(self._generator.event(number), number) for number in given_up
        ]
        return [number for number, kind in zip(given_up, kinds, strict=True) if not kind.is_final]

    async def close(self) -> None:
        """Cancel every delivery."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        for pool in self._pools:
            pool.close()

    async def deliver_once(self, event: SimulatedEvent, process: int) -> AnswerKind:
        """Send the first delivery of an event to one gateway, without retries."""
        return await self._attempt(event, event.deliveries[0].request, process)

    async def _wait_for_turn(self) -> None:
        while len(self._under_way) >= UNDER_WAY_MAX:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
        now = time.monotonic()
        # A backlog after a stall is dropped: it would come all at once.
        self._next_at = max(self._next_at + self._pace_s, now - STALL_S)
        if self._next_at > now:
            await asyncio.sleep(self._next_at - now)

    def _start(self, event: SimulatedEvent, delivery: Delivery) -> None:
        self.ledger.callbacks += 1
        task = asyncio.create_task(self._deliver(event, delivery))
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (defect := task.exception()) is not None:
            self._defects.append(defect)

    async def _deliver(self, event: SimulatedEvent, delivery: Delivery) -> None:
        number = event.number
        # One for each delivery: concurrent deliveries of an event do not retry in step.
        random = Random(f"{self._generator.seed} {self.ledger.callbacks}")  # noqa: S311
        process = delivery.process
        if delivery.hangs_up_after is not None:
            await self._hang_up(number, delivery, random)
        for pause_s in (*self._retry_after_s, None):
            if (await self._attempt(event, delivery.request, process)).is_final:
                return
            if pause_s is not None:
                await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))
            process = random.randrange(len(self._pools))
        self.ledger.given_up.append(number)

    async def _attempt(self, event: SimulatedEvent, request: bytes, process: int) -> AnswerKind:
        if event.row is None:
            self._sendings += 1
            request = numbered(request, self._sendings)
        number = self._sendings
        async with self._pools[process % len(self._pools)].connection() as connection:
            answer = await connection.send(request, ANSWER_TIMEOUT_S)
        kind = classify(answer)
        self.ledger.note(event.number, kind, answer.sent_at, answer.answered_at)
        if event.row is None:
            self.ledger.sendings[number] = Sending(
                event.number, kind, answer.sent_at, answer.answered_at
            )
        return kind

    async def _hang_up(self, number: int, delivery: Delivery, random: Random) -> None:
        assert delivery.hangs_up_after is not None
        sent_at = time.time()
        part = delivery.request[: int(len(delivery.request) * delivery.hangs_up_after)]
        async with self._pools[delivery.process % len(self._pools)].connection() as connection:
            await connection.hang_up(part, random.uniform(0, HANG_UP_WITHIN_S))
        self.ledger.note(number, AnswerKind.HUNG_UP, sent_at, time.time())


class _Pool:
    """The keep-alive connections to one gateway."""

    def __init__(self, port: int) -> None:
        self.opened = 0
        self._port = port
        self._room = asyncio.Semaphore(CONNECTIONS_MAX)
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        async with self._room:
            connection = self._take()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            if not connection.is_closed:
                self._idle.append(connection)

    def _take(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed:
                return connection
            connection.close()
        self.opened += 1
        return Connection(self._port)

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
