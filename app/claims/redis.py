"""Claims in Redis: a lease for each event under way, and a memory of the committed ones.

A failure of Redis is answered as if every claim were held; the unique index of the database
catches the duplicates.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import NamedTuple

from app.claims import Claim, cluster, scripts
from app.claims.connection import Connect, make_connection
from app.claims.discovery import Kind, discovery_of, read_address
from app.claims.parts import Part, Share, shares_of
from app.claims.primaries import DISCOVERY_TIMEOUT_S, Call, Primaries
from app.telemetry.metrics import CLAIMS_BYPASSED

# Committed events wait for the next claim, which takes them along, but not for longer than this.
SETTLE_IDLE_S = 0.5
# Bounds the memory while Redis is unavailable; the database recognises events beyond it.
UNSETTLED_MAX = 50_000
SETTLED_PER_CALL_MAX = 1_000

_CALL = attrgetter("call")


class Request(NamedTuple):
    """A call for a share of a batch, and the committed events that it settles."""

    share: Share
    settled: Sequence[bytes]
    call: Call


class RedisClaims:
    """The claims of all processes that share a database.

    `generation` names the data that the claims are about, and is in every key. While it is None,
    the database is unknown and Redis is not used: its memory might be of another database.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        generation: Callable[[], str | None],
        lease_s: float,
        seen_window_d: float,
        connect: Connect = make_connection,
    ) -> None:
        address = read_address(redis_url)
        tags = cluster.hash_tags() if address.kind is Kind.CLUSTER else [b""]
        self._parts = [Part(tag) for tag in tags]
        discovery = discovery_of(address, connect, DISCOVERY_TIMEOUT_S)
        self._primaries = Primaries(discovery, [part.slot for part in self._parts], connect)
        self._generation = generation
        # Claims are released also when the database has just become unavailable.
        self._last_generation: str | None = None
        self._token = secrets.token_bytes(8)
        self._lease_ms = int(lease_s * 1000)
        self._seen_ms = int(seen_window_d * 86_400_000)
        self._settler: asyncio.Task[None] | None = None

    @property
    def is_bypassed(self) -> bool:
        """See `Claims`."""
        return self._primaries.is_bypassed

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        """See `Claims`. Settles committed events in the same round trip."""
        claims = [Claim.HELD] * len(event_ids)
        generation = self._generation()
        self._last_generation = generation or self._last_generation
        requests = self._requests(shares_of(event_ids, self._parts, generation))
        if requests:
            await self._primaries.run(list(map(_CALL, requests)))
        if not requests or not self._take_answers(requests, claims):
            CLAIMS_BYPASSED.inc()
        return claims

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        """See `Claims`. Only notes the events: the next claim sends them to Redis."""
        for part, _, keys in shares_of(event_ids, self._parts, self._generation()):
            part.unsettled += keys
            del part.unsettled[: -(UNSETTLED_MAX // len(self._parts))]
        if self._settler is None:
            self._settle_later()

    async def release(self, event_ids: Sequence[bytes]) -> None:
        """See `Claims`. A claim that cannot be released now ends with its lease."""
        if not event_ids:  # as a rule
            return
        generation = self._generation() or self._last_generation
        await self._primaries.run(
            [
                Call(part.slot, scripts.release(keys, self._token))
                for part, _, keys in shares_of(event_ids, self._parts, generation)
                if keys
            ]
        )

    async def close(self) -> None:
        """See `Claims`."""
        if self._settler is not None:
            self._settler.cancel()
        await self._settle_rest()
        await self._primaries.close()

    def _settle_later(self) -> None:
        if self._settler is None:
            self._settler = asyncio.create_task(self._settle_when_idle())

    async def _settle_when_idle(self) -> None:
        # One task serves many batches: under load, each claim leaves it nothing to do.
        while True:
            await asyncio.sleep(SETTLE_IDLE_S)
            if not any(part.unsettled for part in self._parts):
                break
            await self._settle_rest()
        self._settler = None

    async def _settle_rest(self) -> None:
        """Settle until nothing is left, or an answer is missing."""
        shares = [Share(part) for part in self._parts]
        while any(part.unsettled for part in self._parts):
            requests = self._requests(shares)
            await self._primaries.run(list(map(_CALL, requests)))
            if not self._take_answers(requests, []):
                break

    def _requests(self, shares: Sequence[Share]) -> Sequence[Request]:
        """Return a request for each share, which also settles committed events of its part."""
        requests = []
        settled_max = SETTLED_PER_CALL_MAX // len(self._parts)
        for share in shares:
            part = share.part
            settled, part.unsettled = part.unsettled[:settled_max], part.unsettled[settled_max:]
            if share.keys or settled:
                packed = scripts.settle_and_claim(
                    settled, share.keys, self._token, self._lease_ms, self._seen_ms
                )
                requests.append(Request(share, settled, Call(part.slot, packed)))
        return requests

    def _take_answers(self, requests: Sequence[Request], claims: list[Claim]) -> bool:
        """Set the claims of answered requests; return whether every one was answered."""
        is_complete = True
        for (part, positions, keys), settled, call in requests:
            answer = call.answer
            if answer is None or len(answer) != len(keys):
                part.unsettled[:0] = settled
                self._settle_later()
                is_complete = False
            elif answer.strip(scripts.HELD):  # not all are held, which is the exception
                for position, letter in zip(positions, answer, strict=True):
                    claims[position] = scripts.CLAIMS[letter]
        return is_complete
