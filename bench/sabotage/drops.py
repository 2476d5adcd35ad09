"""Sabotages of quarantine."""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from msgspec.structs import replace

from app import drops
from app.dropped import Dropped
from app.event import DropReason
from bench.sabotage.sabotage import Found, Sabotage, patch
from bench.testbed.deliveries import DROPPED_KINDS, EventKind
from sinks.timescale.quarantine import TimescaleQuarantine

KEEPS_LATER_S = 0.05
_DROPS: dict[EventKind, int] = dict.fromkeys(sorted(DROPPED_KINDS, key=str), 100)

keep = TimescaleQuarantine.keep


def _before_commit() -> None:
    later: set[asyncio.Task[None]] = set()

    async def keep_later(quarantine: TimescaleQuarantine, dropped: Sequence[Dropped]) -> None:
        await asyncio.sleep(KEEPS_LATER_S)
        await keep(quarantine, dropped)

    async def begin(quarantine: TimescaleQuarantine, dropped: Sequence[Dropped]) -> None:
        task = asyncio.create_task(keep_later(quarantine, dropped))
        later.add(task)
        task.add_done_callback(later.discard)

    patch(TimescaleQuarantine, "keep", begin)


def _twice() -> None:
    async def keep_twice(quarantine: TimescaleQuarantine, dropped: Sequence[Dropped]) -> None:
        await keep(quarantine, dropped)
        await keep(quarantine, dropped)

    patch(TimescaleQuarantine, "keep", keep_twice)


def _changed(change: Callable[[Dropped], Dropped | None]) -> Callable[[], None]:
    """Return a patch that changes each drop, or leaves it out."""

    async def keep_changed(quarantine: TimescaleQuarantine, dropped: Sequence[Dropped]) -> None:
        changed = map(change, dropped)
        await keep(quarantine, [drop for drop in changed if drop is not None])

    return partial(patch, TimescaleQuarantine, "keep", keep_changed)


def _without_a_reason(dropped: Dropped) -> Dropped | None:
    return None if dropped.reason is DropReason.UNFILLED_PLACEHOLDER else dropped


def _drops(name: str, sentence: str, found: Found, apply: Callable[[], None]) -> Sabotage:
    return Sabotage(name, sentence, found, apply, shares=_DROPS, callbacks=600)


_KEPT = "A drop is in quarantine before it is answered."
SABOTAGES = (
    _drops("drops-before-commit", _KEPT, Found.LIED, _before_commit),
    _drops("drops-of-a-reason-lost", _KEPT, Found.LOST, _changed(_without_a_reason)),
    _drops("drops-kept-twice", "Each delivery is one row.", Found.DOUBLED, _twice),
    _drops(
        "drops-without-body", "Quarantine has the bytes.", Found.LOST,
        _changed(lambda dropped: replace(dropped, body=b"")),
    ),
    _drops(
        "drops-without-event", "A refused event is kept.", Found.LOST,
        _changed(lambda dropped: replace(dropped, event=None)),
    ),
    _drops(
        "drops-with-secret", "The secret is left out.", Found.LEAKED,
        partial(patch, drops, "redact_query", lambda query, *_: query),
    ),
)  # fmt: skip
