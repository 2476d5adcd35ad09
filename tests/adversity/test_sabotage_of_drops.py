"""The oracle finds each quarantine that breaks a promise on purpose."""

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from app.dropped import Dropped
from app.event import DropReason
from bench.faults.oracle import judge
from bench.testbed.callbacks import SECRET, WORKSPACES
from bench.testbed.deliveries import DROPPED_KINDS, EventGenerator, EventKind
from bench.testbed.vendor import Vendor
from sinks.timescale.quarantine import TimescaleQuarantine
from tests.gateways import Gateways

KEEPS_LATER_S = 0.05
# Events are refused by rules of their own, in the runs with faults.
KINDS = DROPPED_KINDS - {EventKind.POISON}
CALLBACKS = 150


class AnswersDropsBeforeCommit(TimescaleQuarantine):
    """Reports drops as kept, and keeps them then."""

    def __init__(self, database_url: str, *, commit_timeout_s: float) -> None:
        super().__init__(database_url, commit_timeout_s=commit_timeout_s)
        self._later: list[asyncio.Task[None]] = []

    async def keep(self, drops: Sequence[Dropped]) -> None:
        self._later.append(asyncio.create_task(self._keep_later(drops)))

    async def _keep_later(self, drops: Sequence[Dropped]) -> None:
        await asyncio.sleep(KEEPS_LATER_S)
        await super().keep(drops)

    async def close(self) -> None:
        await asyncio.gather(*self._later)
        await super().close()


class KeepsDropsTwice(TimescaleQuarantine):
    """Keeps drops once more, as after an answer that was lost."""

    async def keep(self, drops: Sequence[Dropped]) -> None:
        await super().keep(drops)
        await super().keep(drops)


class ForgetsAReason(TimescaleQuarantine):
    """Keeps the drops of all reasons but one."""

    async def keep(self, drops: Sequence[Dropped]) -> None:
        forgotten = DropReason.UNFILLED_PLACEHOLDER
        await super().keep([drop for drop in drops if drop.reason is not forgotten])


@pytest.mark.parametrize(
    ("quarantine", "found"),
    [
        (TimescaleQuarantine, set()),
        (AnswersDropsBeforeCommit, {"lied"}),
        (KeepsDropsTwice, {"doubled"}),
        (ForgetsAReason, {"lost"}),
    ],
)
async def test_sabotage_of_quarantine_is_caught(
    gateways: Gateways,
    connection: asyncpg.Connection,
    quarantine: type[TimescaleQuarantine],
    found: set[str],
) -> None:
    """A quarantine that breaks a promise is found for it; the true one is clean."""
    (gateways.folder / "workspaces.toml").write_text(WORKSPACES)
    gateway = await gateways.start(
        quarantine=quarantine(gateways.database_url, commit_timeout_s=5),
        ADJUST_CALLBACK_SECRET=SECRET,
    )
    generator = EventGenerator(seed=3, shares=dict.fromkeys(sorted(KINDS, key=str), 1))
    vendor = Vendor(generator, [gateway.port], rate=400)
    await vendor.send(CALLBACKS)
    await vendor.finish()
    await vendor.close()
    await gateway.stop()  # which waits for drops that are kept later
    verdict = await judge(connection, generator, vendor.ledger, CALLBACKS)
    broken = {kind for kind in ("lost", "doubled", "lied", "leaked") if getattr(verdict, kind)}
    assert broken == found
    assert verdict.dropped_rows > CALLBACKS / 2
