"""The run against claims that are handled wrongly: the keys of Redis, compared with the rows."""

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from redis.asyncio import Redis

from bench.faults.verdict import Verdict
from bench.sabotage.sabotage import Sabotage
from bench.sabotage.scenarios import SEED, judge_run, vendor_of
from bench.testbed.deliveries import MIX, EventGenerator
from bench.testbed.environment import CLAIM_LEASE_S, Environment
from bench.testbed.ledger import AnswerKind
from bench.testbed.process import POLL_S
from bench.testbed.vendor import Vendor
from bench.testbed.waits import until_true

# The contract promises a second, also to an idle gateway.
SETTLED_WITHIN_S = 2.0
# A release precedes the answer.
RELEASED_WITHIN_S = 0.5
UNSETTLED_SHARE = 0.05
DELIVERIES_MAX = 2
TAKEN_WITHIN_S = 10.0
TAKEN_MIN = 10
FAILED_PER_CLAIM = 4
UNRETRIED = 100
# One of the claims is found within this time, on a busy machine.
FRESH_S = 1.0
_LEASE_MS = CLAIM_LEASE_S * 1_000
_SEEN, _ANOTHER = b"seen", b"another"
_SEEN_MS = 30 * 86_400_000
_DAY_MS = 86_400_000
_EVENT_ID_BYTES = 16
_ROWS = "SELECT event_id FROM events"
_KEYS = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = {key, redis.call('GET', key), redis.call('PTTL', key)}
end
return found
"""
# Another process takes each claim over, as after the end of its lease; returns the former claims.
_TAKE_OVER = """
local taken = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  local owner = redis.call('GET', key)
  if owner ~= 'seen' and owner ~= 'another' then
    taken[#taken + 1] = {key, owner, redis.call('PTTL', key)}
    redis.call('SET', key, 'another', 'PX', 600000)
  end
end
return taken
"""


class Key(NamedTuple):
    """A key of Redis: its value, and the milliseconds that it has left."""

    name: bytes
    owner: bytes
    left_ms: int

    @property
    def event_id(self) -> bytes:
        """The event that the key is about."""
        return self.name[-_EVENT_ID_BYTES:]


async def run_with_others_claims(
    sabotage: Sabotage, environment: Environment
) -> tuple[Verdict, list[str]]:
    """Compare the keys with the rows, and take claims over; returns the broken rules too."""
    generator = EventGenerator(SEED, sabotage.all_shares, vendors=MIX)
    vendor = vendor_of(environment, generator)
    try:
        async with environment.redis() as redis:
            run = _Run(environment, generator, vendor, redis)
            await run.run(sabotage.callbacks)
    finally:
        await vendor.close()
    return await judge_run(environment, generator, vendor.ledger, vendor.begun), run.broken


@dataclass
class _Run:
    environment: Environment
    generator: EventGenerator
    vendor: Vendor
    redis: Redis
    portion: int = 0
    broken: list[str] = field(default_factory=list)

    async def run(self, callbacks: int) -> None:
        """Go through the phases, up to the first with a broken rule."""
        self.portion = callbacks // 6
        await self.vendor.send(self.portion)  # chunks are made, and connections opened
        await self.vendor.finish()
        for phase in (self._deliver_again, self._write_more, self._fail_under_lock):
            await phase()
            if self.broken:  # perhaps by a call of Redis that took too long, and was given up
                self.broken.clear()
                await asyncio.sleep(CLAIM_LEASE_S)
                await phase()
            if self.broken:
                return
        async with asyncio.TaskGroup() as tasks, self.environment.locked("events"):
            tasks.create_task(self.vendor.send(callbacks))
            await self._lose_claims()
        await self._compare(1.0, CLAIM_LEASE_S)
        seen = [key for key in await self._keys() if key.owner == _SEEN]
        if any(not _SEEN_MS - _DAY_MS < key.left_ms <= _SEEN_MS for key in seen):
            self.broken.append("an event is seen for another time than SEEN_WINDOW_D")

    async def _deliver_again(self) -> None:
        """Let Redis forget the events: the database finds the duplicates, which are settled too."""
        await self.redis.flushall()
        await self._deliver_at_once(range(self.vendor.begun))
        await self._compare(UNSETTLED_SHARE)

    async def _write_more(self) -> None:
        await self.vendor.send(self.vendor.begun + self.portion)
        await self._compare(UNSETTLED_SHARE)

    async def _fail_under_lock(self) -> None:
        """Send callbacks that fail, once each; afterwards none may be claimed."""
        begun = self.vendor.begun
        async with self.environment.locked("events"):
            await self._deliver_at_once(range(begun, begun + UNRETRIED))
            deadline = time.monotonic() + RELEASED_WITHIN_S
            while left := claimed(await self._keys()):
                if time.monotonic() > deadline:
                    self.broken.append(f"{len(left)} claims of failed events are not released")
                    return
                await asyncio.sleep(POLL_S)

    async def _compare(self, share: float, more_s: float = 0.0) -> None:
        """Compare the keys with the rows once all callbacks are answered.

        At most this share of the rows may be unsettled: an event is released when it was written
        apart from its batch, because its chunk was new or locked. Its next delivery settles it.
        Claims may be left for `more_s` longer than unsettled events.
        """
        await self.vendor.finish()
        await self.vendor.retry_given_up()
        async with self.environment.connected() as connection:
            rows = {row["event_id"].bytes for row in await connection.fetch(_ROWS)}
        left = await self._until_settled(rows, more_s)
        if len(left) > share * len(rows):
            self.broken.append(f"{len(left)} of {len(rows)} written events are not settled")
            return
        for _ in range(DELIVERIES_MAX):
            if not left:
                return
            await self._deliver_at_once(self._numbers(left))
            left = await self._until_settled(rows, more_s)
        if left:
            self.broken.append(f"{len(left)} events are not settled by their next delivery")

    async def _until_settled(self, rows: Collection[bytes], more_s: float) -> Collection[bytes]:
        """Return the unsettled events; none, or those after SETTLED_WITHIN_S."""
        deadline = time.monotonic() + SETTLED_WITHIN_S
        while True:
            keys = await self._keys()
            left, claims = unsettled(keys, rows), claimed(keys)
            if time.monotonic() > deadline + (more_s if claims else 0):
                break
            if not left and not claims:
                break
            await asyncio.sleep(POLL_S)
        if claims:
            self.broken.append(f"{len(claims)} claims are neither settled nor released")
        if without_row := unwritten(keys, rows):
            self.broken.append(f"{len(without_row)} events are seen, and not written")
        return left

    def _numbers(self, event_ids: Collection[bytes]) -> Iterable[int]:
        for number in range(self.vendor.begun):
            row = self.generator.event(number).row
            if row is not None and row.event_id.bytes in event_ids:
                yield number

    async def _deliver_at_once(self, numbers: Iterable[int]) -> None:
        """Send these events, in few batches and without retries; not those without a row."""
        events = [event for event in map(self.generator.event, numbers) if event.row is not None]
        await asyncio.gather(*(self.vendor.deliver_once(event, event.number) for event in events))

    async def _lose_claims(self) -> None:
        """Take claims over. Nothing is committed meanwhile, and so none of them is settled."""
        taken = await self._take_over()
        self.broken += broken_leases([key.left_ms for key in taken.values()])
        await self._until_failed(FAILED_PER_CLAIM * len(taken))
        owners = {key.name: key.owner for key in await self._keys()}
        if released := [name for name in taken if owners.get(name) != _ANOTHER]:
            self.broken.append(f"{len(released)} claims of another process were released")

    async def _take_over(self) -> Mapping[bytes, Key]:
        """Return the claims that were taken over, by their names; none if a rule is broken."""
        taken: dict[bytes, Key] = {}
        owners: set[bytes] = set()
        deadline = time.monotonic() + TAKEN_WITHIN_S
        while len(taken) < TAKEN_MIN or len(owners) < len(self.environment.gateways):
            if time.monotonic() > deadline:
                is_claimed = len(taken) >= TAKEN_MIN
                self.broken.append(
                    "processes share a token" if is_claimed else "events are not claimed"
                )
                return {}
            for key in [Key(*found) for found in await self.redis.eval(_TAKE_OVER, 0)]:
                taken[key.name] = key
                owners.add(key.owner)
            await asyncio.sleep(POLL_S)
        return taken

    async def _until_failed(self, answers: int) -> None:
        """Return after so many further answers of a failure, each of which follows a release."""
        ledger = self.vendor.ledger
        answers += ledger.tally()[AnswerKind.ERROR]

        async def have_failed() -> bool:
            return ledger.tally()[AnswerKind.ERROR] >= answers

        await until_true(have_failed)

    async def _keys(self) -> Sequence[Key]:
        return [Key(*found) for found in await self.redis.eval(_KEYS, 0)]


def claimed(keys: Sequence[Key]) -> Sequence[Key]:
    """Return the keys that are claims of a gateway."""
    return [key for key in keys if key.owner not in (_SEEN, _ANOTHER)]


def unsettled(keys: Sequence[Key], rows: Collection[bytes]) -> Collection[bytes]:
    """Return the events with a row that are not seen, but for those of the other process."""
    return set(rows) - {key.event_id for key in keys if key.owner in (_SEEN, _ANOTHER)}


def unwritten(keys: Sequence[Key], rows: Collection[bytes]) -> Collection[bytes]:
    """Return the events that are seen, and have no row."""
    return {key.event_id for key in keys if key.owner == _SEEN} - set(rows)


def broken_leases(left_ms: Sequence[int]) -> list[str]:
    """Return the broken rules of claims with these milliseconds left, one of them fresh."""
    if any(not 0 < left <= _LEASE_MS for left in left_ms):
        return ["a claim has another lease than CLAIM_LEASE_S"]
    if left_ms and max(left_ms) <= _LEASE_MS - FRESH_S * 1_000:
        return [f"no claim has more than {max(left_ms)} ms of CLAIM_LEASE_S left"]
    return []
