"""The run of `replay`: page by page, first the events, then their rows; and the dry run."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import date
from typing import NamedTuple
from uuid import UUID

from app.claims import Claims
from app.commands.replay_report import Sums, day_of
from app.commands.selection import ArgumentError, SourceError
from app.event import DropReason, Event, Outcome
from app.replay import NotRestored, Restorer, is_committed, write
from sinks import Sink
from sinks.timescale import hosts
from sinks.timescale import replay as rows_of
from sinks.timescale.drops import Selection
from sinks.timescale.errors import AddressError, DatabaseError, NotReplicated, translated
from sinks.timescale.hosts import Connection
from sinks.timescale.replay import PAGE_ROWS, Kept, Key, Overview

TIMEOUTS = {"timeout_s": 10.0, "command_timeout_s": 60.0}
BATCH_EVENTS = 50
# The pause before busy events are tried again, and how many of them are kept in mind.
ROUND_PAUSE_S = 0.5
BUSY_MAX = 10_000
# The event IDs that a dry run keeps in mind, to find repeats within quarantine, and those before.
KNOWN_MAX = 100_000

BUSY = "delivered or locked by another writer at this moment"


class Databases(NamedTuple):
    """A connection to the quarantine, and one to the events and their imports: often the same."""

    quarantine: Connection
    imports: Connection


async def connect(stack: AsyncExitStack, database_url: str, source_url: str | None) -> Databases:
    """Connect to the database, and to that of the quarantine if it is another one.

    Raises AddressError and NoAnswer, ArgumentError and SourceError for the other one.
    """
    imports = await stack.enter_async_context(hosts.connected(database_url, **TIMEOUTS))
    if source_url is None:
        return Databases(imports, imports)
    try:
        return Databases(
            await stack.enter_async_context(hosts.connected(source_url, **TIMEOUTS)), imports
        )
    except AddressError as error:
        raise ArgumentError(f"--from: {error}") from None
    except hosts.NoAnswer as error:
        raise SourceError(f"--from: {error}") from None


class Replay:
    """Replays a selection of quarantine.

    By its order a crash is harmless: the days are announced in `imports`, then the events are
    committed, then their rows leave quarantine. After a crash the next replay finds duplicates.
    """

    def __init__(
        self,
        databases: Databases,
        restorer: Restorer,
        claims: Claims,
        sink: Sink,
        *,
        rate: float,
        busy_s: float,
        stop: asyncio.Event,
        show: Callable[[int], None],
    ) -> None:
        self._quarantine, self._imports = databases
        self._restorer = restorer
        self._claims = claims
        self._sink = sink
        self._rate = rate
        self._busy_s = busy_s
        self._stop = stop
        self._show = show
        self._announced: tuple[date, ...] = ()
        self._busy: list[Key] = []
        self._started_at = 0.0
        self._sent = 0
        self.sums = Sums()

    async def run(self, import_id: UUID, selection: Selection, extent: Overview) -> None:
        """Replay until nothing is left, or busy events have had `busy_s`; raises DatabaseError."""
        self._started_at = time.monotonic()
        try:
            async for page in rows_of.read_pages(self._quarantine, selection, extent):
                await self._replay(import_id, page)
                if self._stop.is_set():
                    break
            deadline = time.monotonic() + self._busy_s
            while self._busy and time.monotonic() < deadline and await self._pause(ROUND_PAUSE_S):
                keys, self._busy = self._busy, []
                for start in range(0, len(keys), PAGE_ROWS):
                    part = keys[start : start + PAGE_ROWS]
                    await self._replay(import_id, await rows_of.read_page(self._quarantine, part))
        finally:
            self.sums.left[BUSY] += len(self._busy)
        await rows_of.finish_import(self._imports, import_id, sorted(self.sums.days))

    async def _replay(self, import_id: UUID, page: Sequence[Kept]) -> None:
        """Replay a page; the rows that are decided leave quarantine also after a failure."""
        restored, leaving = self._restore(page)
        await self._announce(import_id, [event for _, event in restored])
        failure: DatabaseError | None = None
        for start in range(0, len(restored), BATCH_EVENTS):
            batch = restored[start : start + BATCH_EVENTS]
            if not await self._pause(self._ahead_s()):
                break
            try:
                with translated():
                    leaving += await self._write(batch)
            except (DatabaseError, NotReplicated) as error:
                # Any of these may have been written.
                self.sums.days.update(day_of(event) for _, event in batch)
                failure = error if isinstance(error, DatabaseError) else DatabaseError(str(error))
                break
            self._show(self.sums.read)
        await rows_of.remove(self._quarantine, import_id, leaving, self.sums.counts)
        # An import is noted in the database of its events.
        if self._quarantine is not self._imports:
            await rows_of.remove(self._imports, import_id, [], self.sums.counts)
        if failure is not None:
            raise failure

    def _restore(self, page: Sequence[Kept]) -> tuple[list[tuple[Kept, Event]], list[Kept]]:
        """Return the rows that are events now, and those that leave because they are ignored."""
        restored: list[tuple[Kept, Event]] = []
        ignored: list[Kept] = []
        for row in page:
            try:
                event = self._restorer.restore(row.dropped)
            except NotRestored as error:
                self.sums.left[str(error)] += 1
                continue
            if isinstance(event, Event):
                restored.append((row, event))
                continue
            self.sums.add_drop(event)
            if event.reason is DropReason.IGNORED:
                ignored.append(row)
        return restored, ignored

    async def _announce(self, import_id: UUID, events: Sequence[Event]) -> None:
        days = [*self._announced, *map(day_of, events)]
        if days and (extent := (min(days), max(days))) != self._announced:
            await rows_of.announce_days(self._imports, import_id, *extent)
            self._announced = extent

    async def _write(self, batch: Sequence[tuple[Kept, Event]]) -> list[Kept]:
        """Write a batch, and return the rows whose events are in the table."""
        outcomes = dict(await write([event for _, event in batch], self._claims, self._sink))
        self._sent += len(batch)
        committed: list[Kept] = []
        for row, event in batch:
            outcome = outcomes[event.event_id]
            if outcome in (Outcome.CONTESTED, Outcome.FAILED):
                if outcome is Outcome.FAILED:  # it may have been written
                    self.sums.days.add(day_of(event))
                self._set_aside(row)
                continue
            self.sums.add(event, outcome)
            if is_committed(outcome):
                committed.append(row)
                outcomes[event.event_id] = Outcome.DUPLICATE  # of its repeats in the batch
        return committed

    def _set_aside(self, row: Kept) -> None:
        if len(self._busy) < BUSY_MAX:
            self._busy.append(row.key)
        else:
            self.sums.left[BUSY] += 1

    def _ahead_s(self) -> float:
        """Return the time by which the events sent so far are ahead of the rate."""
        return self._started_at + self._sent / self._rate - time.monotonic()

    async def _pause(self, pause_s: float) -> bool:
        """Return after a pause, or at once when the replay is stopped; whether it goes on."""
        if pause_s > 0 and not self._stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._stop.wait()
        return not self._stop.is_set()


async def rehearse(
    databases: Databases,
    restorer: Restorer,
    selection: Selection,
    extent: Overview,
    *,
    stop: asyncio.Event,
    show: Callable[[int], None],
) -> Sums:
    """Return the sums of a replay, without one: nothing is claimed, written or removed."""
    sums = Sums()
    known: set[bytes] = set()
    before: set[bytes] = set()
    async for page in rows_of.read_pages(databases.quarantine, selection, extent):
        events: list[Event] = []
        for row in page:
            try:
                event = restorer.restore(row.dropped)
            except NotRestored as error:
                sums.left[str(error)] += 1
                continue
            if isinstance(event, Event):
                events.append(event)
            else:
                sums.add_drop(event)
        found = await rows_of.find_events(databases.imports, events)
        for event in events:
            is_there = any(event.event_id in ids for ids in (found, known, before))
            sums.add(event, Outcome.DUPLICATE if is_there else Outcome.WRITTEN)
            known.add(event.event_id)
        if len(known) >= KNOWN_MAX:
            known, before = set(), known
        show(sums.read)
        if stop.is_set():
            break
    return sums
