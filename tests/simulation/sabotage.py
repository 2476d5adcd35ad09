"""The product with one promise broken on purpose: a simulation must find each of them.

Most sabotages are those of the bench, which breaks real processes in the same way.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from app.buffer import WriteBuffer
from app.claims import Claim
from app.claims.redis import RedisClaims
from app.event import Event, Outcome
from bench.sabotage.catalogue import SABOTAGES as OF_PROCESSES
from bench.sabotage.sabotage import Found, Sabotage, applied, patch
from sinks.timescale import session, statements
from sinks.timescale.sink import TimescaleSink
from tests.simulation import history
from tests.simulation.database import Server

_SHARED = (
    "settle-before-commit",
    "failure-is-settled",
    "releases-claims-of-others",
    "contested-is-duplicate",
    "constant-generation",
    "fold-repeats-written",
    "answers-before-commit",
    "unknown-is-written",
    "conflict-is-duplicate",
    "locked-is-duplicate",
    "any-error-refuses",
    "never-refuses",
    "duplicate-not-confirmed",
    "cancelled-wait-ignored",
    "stable-ids-apart",
    "copy-count-not-compared",
    "id-without-app",
    "id-without-user-kind",
    "id-without-raw-event-id",
    "stable-id-ignored",
)

_write, _claim, _submit = TimescaleSink.write, RedisClaims.claim, WriteBuffer.submit
_by_presence = statements._by_presence


def _outcomes_of_other_events() -> None:
    async def write(sink: TimescaleSink, events: Sequence[Event]) -> Sequence[Outcome]:
        return list(reversed(await _write(sink, events)))

    patch(TimescaleSink, "write", write)


def _seen_without_redis() -> None:
    async def claim(claims: RedisClaims, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        answers = await _claim(claims, event_ids)
        return [Claim.SEEN] * len(answers) if claims.is_bypassed else answers

    patch(RedisClaims, "claim", claim)


def _present_is_written() -> None:
    def by_presence(
        events: Sequence[Event], rows: Collection[bytes], _: Outcome
    ) -> dict[bytes, Outcome]:
        return _by_presence(events, rows, Outcome.WRITTEN)

    patch(statements, "_by_presence", by_presence)


def _repeats_before_commit() -> None:
    """Answer a repeat of an event that is in the buffer at once."""
    under_way: set[tuple[int, bytes]] = set()

    async def submit(
        buffer: WriteBuffer[Event, Outcome], item: Event, owner: str, size_bytes: int = 0
    ) -> Outcome:
        key = (id(buffer), item.event_id)
        if key in under_way:
            return Outcome.DUPLICATE
        under_way.add(key)
        try:
            return await _submit(buffer, item, owner, size_bytes)
        finally:
            under_way.discard(key)

    patch(WriteBuffer, "submit", submit)


_OWN = (
    # The model knows no weaker setting; this one leaves the role's.
    replace(
        OF_PROCESSES["commit-without-standby"],
        apply=partial(patch, session, "DURABLE", "SET lock_timeout = 100"),
    ),
    replace(OF_PROCESSES["no-unique-index"], apply=partial(patch, Server, "is_unique", False)),
    Sabotage(
        "outcomes-of-other-events", "Row by row, written or duplicate",
        Found.LIED, _outcomes_of_other_events,
    ),
    Sabotage(
        "seen-without-redis", "Losing Redis costs speed, never correctness.",
        Found.LIED, _seen_without_redis,
    ),
    Sabotage(
        "present-is-written", "Row by row, written or duplicate",
        Found.DOUBLED, _present_is_written,
    ),
    Sabotage(
        "repeats-before-commit", "Fold: repeats answer `duplicate` after the commit.",
        Found.LIED, _repeats_before_commit,
    ),
)  # fmt: skip

SABOTAGES: Mapping[str, Sabotage] = {
    sabotage.name: sabotage for sabotage in (*(OF_PROCESSES[name] for name in _SHARED), *_OWN)
}


class Finding(NamedTuple):
    """The first history that shows a sabotage."""

    result: history.Result
    histories: int

    @property
    def verdict(self) -> str:
        """The verdict on the first broken promise."""
        return self.result.violations[0].partition(":")[0]


def find(name: str, seeds: Iterable[int]) -> Finding | None:
    """Return the first history of these seeds that shows a sabotage; None where none does."""
    with applied(SABOTAGES[name]):
        for number, seed in enumerate(seeds, 1):
            result = history.run(seed)
            if not result.is_sound:
                return Finding(result, number)
    return None
