"""Gateways that break the promise on purpose: `python -m tests.sabotage NAME` serves one.

The oracle of the bench must catch each of them; else its verdict on the real one means nothing.
"""

import asyncio
import sys
from collections.abc import Sequence

from app.claims import Claim
from app.claims.redis import RedisClaims
from app.event import Event, Outcome
from app.gateway import create_gateway
from app.http.lifecycle import serve_gateway
from app.http.server import listen
from app.settings import Settings, read_settings
from app.telemetry import logs
from sinks.timescale.sink import TimescaleSink

WRITES_LATER_S = 0.05


class SeenWhenClaimed(RedisClaims):
    """Marks an event as seen before it is written."""

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        claims = await super().claim(event_ids)
        held = [id_ for id_, claim in zip(event_ids, claims, strict=True) if claim is Claim.HELD]
        await self.settle(held)
        await self.claim_nothing()
        return claims

    async def claim_nothing(self) -> None:
        """Move pending settlements to Redis now."""
        await super().claim([])


class BusyIsDuplicate(RedisClaims):
    """Reports an event that another writer has under way as written."""

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        claims = await super().claim(event_ids)
        return [Claim.SEEN if claim is Claim.CONTESTED else claim for claim in claims]


class AnswersBeforeCommit(TimescaleSink):
    """Reports a batch as written, and writes it then."""

    async def write(self, events: Sequence[Event]) -> Sequence[Outcome]:
        self._later = asyncio.create_task(self._write_later(events))
        return [Outcome.WRITTEN] * len(events)

    async def _write_later(self, events: Sequence[Event]) -> None:
        await asyncio.sleep(WRITES_LATER_S)
        await super().write(events)


class NeverRefuses(TimescaleSink):
    """Has no final answer for an event that the database refuses."""

    async def write_contested(self, event: Event) -> Outcome:
        outcome = await super().write_contested(event)
        if outcome is Outcome.REFUSED:
            raise LookupError("what now?")
        return outcome


CLAIMS = {"seen-when-claimed": SeenWhenClaimed, "busy-is-duplicate": BusyIsDuplicate}
SINKS = {"answers-before-commit": AnswersBeforeCommit, "never-refuses": NeverRefuses}


def serve(name: str, settings: Settings) -> None:
    """Serve with one part replaced by its saboteur."""
    sink = SINKS.get(name, TimescaleSink)(
        settings.database_url, commit_timeout_s=settings.commit_timeout_s
    )
    claims = CLAIMS.get(name, RedisClaims)(
        settings.redis_url,
        generation=lambda: sink.generation,
        lease_s=settings.claim_lease_s,
        seen_window_d=settings.seen_window_d,
    )
    serve_gateway(create_gateway(settings, claims=claims, sink=sink), listen(settings))


if __name__ == "__main__":
    logs.configure("info")
    serve(sys.argv[1], read_settings())
