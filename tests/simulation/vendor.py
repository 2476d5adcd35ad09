"""The vendor: it sends every callback until a final answer, and judges each answer at once."""

import asyncio
from collections.abc import Sequence

from tests.simulation.cluster import Cluster
from tests.simulation.database import Data
from tests.simulation.events import SimulatedEvent, fault_of, identity_of, query_of
from tests.simulation.gateways import SimulatedGateway
from tests.simulation.world import World

PATIENCE_S = (0.05, 0.4, 2.5, 8.0)
# All callbacks have a final answer so long after the last fault.
FINAL_WITHIN_S = 90.0


class Vendor:
    """Sends the callbacks of all events, and retries as a vendor does."""

    def __init__(
        self,
        world: World,
        cluster: Cluster,
        gateways: Sequence[SimulatedGateway],
        events: Sequence[SimulatedEvent],
    ) -> None:
        self._world = world
        self._random = world.random
        self._cluster = cluster
        self._gateways = gateways
        self._events = events
        self._lost_at_s: dict[str, float] = {}
        self._open: list[asyncio.Task[None]] = []
        self.answers = 0
        cluster.on_restore = self._note_lost

    def start(self, horizon_s: float) -> None:
        """Begin to send; callbacks come in groups."""
        instants = [self._random.uniform(0.0, horizon_s) for _ in range(6)]
        for event in self._events:
            for callback in event.callbacks:
                for _ in range(self._random.choice((1, 1, 1, 2, 3))):
                    at_s = self._random.choice(instants) + self._random.choice((0, 0.002, 0.1))
                    self._send_until_final(event, callback, at_s)

    async def wait(self) -> None:
        """Return when every callback has its final answer, or too much time has passed."""
        limit_s = self._world.loop.time() + FINAL_WITHIN_S
        while left := [task for task in self._open if not task.done()]:
            if self._world.loop.time() >= limit_s:
                self._world.broken(f"stuck: {len(left)} callbacks without a final answer")
                return
            await asyncio.wait(left, timeout=limit_s - self._world.loop.time())

    def judge(self) -> None:
        """Compare the rows with the answers, at the end."""
        found: dict[tuple[str | None, ...], int] = {}
        events = {event.identity: event for event in self._events}
        for row in self._cluster.safe:
            identity = identity_of(row)
            found[identity] = found.get(identity, 0) + 1
            event = events.get(identity)
            if event is None or event.is_poison:
                self._world.broken(f"doubled: a row of no event: {row}")
            elif fault := fault_of(row, event):
                self._world.broken(f"lost: {event.name}: {fault}")
        for event in self._events:
            rows = found.get(event.identity, 0)
            if rows > 1:
                self._world.broken(f"doubled: {rows} rows of {event.name}")
            elif not rows and event.final and not event.is_poison:
                self._world.broken(f"lost: {event.name}")
            is_plain = not (event.unanswered or event.restored or event.is_poison)
            if is_plain and event.written != 1:
                self._world.broken(f"lied: {event.written} times written: {event.name}")

    def _send_until_final(
        self, event: SimulatedEvent, callback: dict[str, str], at_s: float
    ) -> None:
        work = self._deliver(event, callback, at_s)
        self._open.append(self._world.loop.create_task(work))

    async def _deliver(self, event: SimulatedEvent, callback: dict[str, str], at_s: float) -> None:
        await asyncio.sleep(at_s)
        while not await self._send(event, callback):
            await asyncio.sleep(self._random.uniform(0.02, 0.8))

    async def _send(self, event: SimulatedEvent, callback: dict[str, str]) -> bool:
        """Send a callback once; return whether the answer is final."""
        gateway = self._random.choice(self._gateways)
        if gateway.process.is_dead:
            return False
        task = gateway.run(self._serve(gateway, event, callback))
        await asyncio.wait([task], timeout=self._random.choice(PATIENCE_S))
        if not task.done():
            event.unanswered += 1
            if self._random.random() < 0.7:
                self._world.note(gateway.name, f"its caller hangs up: {event.name}")
                task.cancel()
            return False
        return not task.cancelled() and task.result() is True

    async def _serve(
        self, gateway: SimulatedGateway, event: SimulatedEvent, callback: dict[str, str]
    ) -> bool:
        """Run in the gateway: answer a callback, and judge the answer at this moment."""
        sent_at_s = self._world.loop.time()
        kind = await gateway.answer(query_of(callback))
        self.answers += 1
        self._world.note(gateway.name, f"answers {kind}: {event.name}")
        if kind in ("written", "duplicate"):
            self._judge_answer(kind, event, sent_at_s)
        elif kind == "dropped":
            if not event.is_poison:
                self._world.broken(f"lied: a good event is dropped: {event.name}")
        else:
            event.unanswered += 1
            return False
        event.final += 1
        return True

    def _judge_answer(self, kind: str, event: SimulatedEvent, sent_at_s: float) -> None:
        _, _, user, type_, *_ = event.identity
        is_durable = any(
            user in (row.user_id, row.adid)
            and row.event_type == type_
            and identity_of(row) == event.identity
            for row in self._cluster.safe
        )
        if not is_durable and self._lost_at_s.get(event.name, -1.0) < sent_at_s:
            self._world.broken(f"lied: {kind} without a durable row: {event.name}")
        if kind == "written":
            event.written += 1
            if event.written > 1 + event.restored:
                self._world.broken(f"doubled: written once more: {event.name}")

    def _note_lost(self, before: Data, after: Data) -> None:
        """Send again the events whose rows a restored snapshot has lost."""
        kept = {identity_of(row) for row in after.rows()}
        lost = {identity_of(row) for row in before.rows()} - kept
        for event in self._events:
            if event.identity in lost:
                event.restored += 1
                self._lost_at_s[event.name] = self._world.loop.time()
                self._send_until_final(event, event.callbacks[0], self._random.uniform(0, 8))
