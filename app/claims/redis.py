"""The claim store: who may write an event now, and what was committed before.

It makes duplicates cheap and keeps twins apart, no more: the database decides. Whatever goes
wrong here is answered as if every claim were held, and is repaired by the unique index.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from app.claims.addresses import Kind, read_address
from app.claims.servers import Call, Servers
from app.event import Claim
from app.telemetry.metrics import CLAIMS_BYPASSED

# In a cluster the keys of a script must share a slot, so a batch becomes up to so many scripts.
# Each costs 5 µs here and as much there; fewer would share the load unevenly, and not at all
# among more primaries than there are parts. To change it makes a cluster forget its claims.
CLUSTER_PARTS = 16
# Settling waits for the next claim to carry it, but not for longer than this.
SETTLE_IDLE_S = 0.5
# What a lost Redis may leave behind in memory; older entries are only slower to recognise.
SETTLE_MAX = 50_000
SETTLE_AT_ONCE = 1_000

# One round trip for both: first `ARGV[4]` keys become seen, then the others are claimed.
_SETTLE_AND_CLAIM = """
for i = 1, tonumber(ARGV[4]) do
  redis.call('SET', KEYS[i], 'seen', 'PX', ARGV[3])
end
local answers = {}
for i = ARGV[4] + 1, #KEYS do
  local owner = redis.call('GET', KEYS[i])
  if not owner then
    redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
    answers[#answers + 1] = 'h'
  elseif owner == 'seen' then
    answers[#answers + 1] = 's'
  else
    answers[#answers + 1] = 'b'
  end
end
return table.concat(answers)
"""
_RELEASE = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
return ''
"""
# Our own token counts as busy too: an earlier write of ours may still be on its way.
_HELD = b"h"
_ANSWERS = {ord("h"): Claim.HELD, ord("s"): Claim.SEEN, ord("b"): Claim.BUSY}


class Claims(Protocol):
    """What the path asks of a claim store. The owner's token is the store's own affair."""

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        """Return one claim for each event, in order. Never raises for trouble of the store."""
        ...

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        """Remember that these events are committed."""
        ...

    async def release(self, event_ids: Sequence[bytes]) -> None:
        """Give back the claims on these events, where they are still ours."""
        ...

    async def close(self) -> None:
        """Remember what is still to be remembered, and close the connections."""
        ...


class _Part:
    """The claims whose keys share a slot: all of them, or in a cluster those with one hash tag."""

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        self.slot = key_slot(tag)
        self.settled: list[bytes] = []  # keys that Redis is yet to be told of

    def share(self, name: bytes, event_ids: Sequence[bytes], places: Sequence[int]) -> "_Share":
        """Return what is ours of a batch, about the data of this name."""
        prefix = self.tag + name
        return _Share(self, places, [prefix + event_ids[place] for place in places])

    def take_settled(self, number_max: int) -> list[bytes]:
        """Return what fits into one round trip."""
        settled = self.settled[:number_max]
        del self.settled[:number_max]
        return settled


class _Share(NamedTuple):
    """The events of a batch that belong to a part: their places in the batch, and their keys."""

    part: _Part
    places: Sequence[int] = ()
    keys: Sequence[bytes] = ()


class RedisClaims:
    """Claims in Redis, for every process that shares the database.

    `generation` names the data that the claims are about and is in every key; while it is None
    nothing is known of the database, and Redis is not asked: what it remembers might belong to
    another one.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        generation: Callable[[], str | None],
        lease_s: float,
        seen_window_d: float,
    ) -> None:
        address = read_address(redis_url)
        tags = _hash_tags(CLUSTER_PARTS) if address.kind is Kind.CLUSTER else [b""]
        self._parts = [_Part(tag) for tag in tags]
        self._servers = Servers(address, [part.slot for part in self._parts])
        self._generation = generation
        # What was claimed is released also when the database has just gone away.
        self._last: str | None = None
        self._token = secrets.token_bytes(8)
        self._lease_ms = int(lease_s * 1000)
        self._seen_ms = int(seen_window_d * 86_400_000)
        self._settler: asyncio.Task[None] | None = None

    @property
    def is_bypassed(self) -> bool:
        """Whether some server did not answer in time when it was last asked."""
        return self._servers.is_bypassed

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        """See `Claims`. Carries what is to be settled along in the same round trip."""
        claims = [Claim.HELD] * len(event_ids)
        generation = self._generation()
        self._last = generation or self._last
        shares = self._share_out(event_ids, generation)
        if not shares or not await self._settle_and_claim(shares, claims):
            CLAIMS_BYPASSED.inc()
        return claims

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        """See `Claims`. Only notes the events: the next claim takes them to Redis."""
        for part, _, keys in self._share_out(event_ids, self._generation()):
            part.settled += keys
            del part.settled[: -(SETTLE_MAX // len(self._parts))]
            self._settle_later()

    async def release(self, event_ids: Sequence[bytes]) -> None:
        """See `Claims`. What cannot be released now ends with its lease."""
        if not event_ids:  # as a rule
            return
        calls = [
            Call(part.slot, ("EVAL", _RELEASE, len(keys), *keys, self._token))
            for part, _, keys in self._share_out(event_ids, self._generation() or self._last)
            if keys
        ]
        await self._servers.run(calls)

    async def close(self) -> None:
        """See `Claims`."""
        if self._settler is not None:
            self._settler.cancel()
        await self._settle_rest()
        await self._servers.close()

    def _settle_later(self) -> None:
        if self._settler is None:
            self._settler = asyncio.create_task(self._settle_when_idle())

    async def _settle_when_idle(self) -> None:
        while any(part.settled for part in self._parts):
            await asyncio.sleep(SETTLE_IDLE_S)
            await self._settle_rest()
        self._settler = None

    async def _settle_rest(self) -> None:
        """Settle until nothing is left, or something is not answered."""
        shares = [_Share(part) for part in self._parts]
        while any(part.settled for part in self._parts):
            if not await self._settle_and_claim(shares, []):
                break

    def _share_out(self, event_ids: Sequence[bytes], generation: str | None) -> Sequence[_Share]:
        """Return what each part has of these events; nothing while the data has no name."""
        if generation is None:
            return ()
        if len(self._parts) == 1:
            places: list[Any] = [range(len(event_ids))]
        else:
            places = [[] for _ in self._parts]
            for place, event_id in enumerate(event_ids):
                places[event_id[0] % len(places)].append(place)
        name = generation.encode()
        return [
            part.share(name, event_ids, where)
            for part, where in zip(self._parts, places, strict=True)
        ]

    async def _settle_and_claim(self, shares: Sequence[_Share], claims: list[Claim]) -> bool:
        """Put what Redis says of the shares in its places; return whether it has said all."""
        shares = [share for share in shares if share.keys or share.part.settled]
        settled = [share.part.take_settled(SETTLE_AT_ONCE // len(self._parts)) for share in shares]
        calls = [self._call(share, keys) for share, keys in zip(shares, settled, strict=True)]
        answers = await self._servers.run(calls)
        is_complete = True
        for (part, places, keys), taken, answer in zip(shares, settled, answers, strict=True):
            if answer is None or len(answer) != len(keys):
                part.settled[:0] = taken
                self._settle_later()
                is_complete = False
                continue
            if answer.strip(_HELD):  # some are not, which is the exception
                for place, letter in zip(places, answer, strict=True):
                    claims[place] = _ANSWERS[letter]
        return is_complete

    def _call(self, share: _Share, settled: Sequence[bytes]) -> Call:
        number = len(settled) + len(share.keys)
        arguments = (self._token, self._lease_ms, self._seen_ms, len(settled))
        words = ("EVAL", _SETTLE_AND_CLAIM, number, *settled, *share.keys, *arguments)
        return Call(share.part.slot, words)


def _hash_tags(number: int) -> list[bytes]:
    """Return tags whose slots lie evenly among all, so that every primary has its part of them.

    A tag stands first in its key: what follows may hold braces too.
    """
    width = REDIS_CLUSTER_HASH_SLOTS // number
    tags = {key_slot(tag) // width: tag for tag in (b"{%02x}" % n for n in range(256))}
    return [tags[place] for place in range(number)]
