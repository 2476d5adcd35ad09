"""A model of PostgreSQL: unique keys, locks, commits, the WAL and its synchronous standby.

A commit is in the WAL first, then on the standby, and visible after that. When the wait for the
standby is cut short, or the server crashes within it, the rows are visible and not replicated.
"""

from collections.abc import Callable, Generator
from datetime import date, datetime
from typing import NamedTuple, Protocol

from asyncpg import exceptions
from asyncpg.exceptions import PostgresError

FLUSH_S = 0.0005


class Surroundings(Protocol):
    """The clock and the chance of a simulation."""

    def later(self, delay_s: float, callback: Callable[[], object]) -> None:
        """Call back after a delay, in no gateway's process."""
        ...

    def delay_s(self, usual_s: float) -> float:
        """Return a random delay, as a rule about the usual one."""
        ...

    def wall_s(self) -> float:
        """Return the time of the wall clock."""
        ...


class Row(NamedTuple):
    """One row of `events`: the columns in their order."""

    event_id: bytes
    occurred_at: datetime
    received_at: datetime
    workspace_id: str
    vendor: str
    app_token: str
    event_type: str
    user_id: str | None
    adid: str | None
    idfa: str | None
    gps_adid: str | None
    os_name: str | None
    country: str | None
    properties: str


# A unique value: of the index of `events`, or of the primary key of `stable_events`.
Key = tuple[datetime | None, bytes]


def key_of(row: Row) -> Key:
    """Return the value of a row in the unique index."""
    return (row.occurred_at, row.event_id)


class Signal:
    """An occurrence that one statement waits for; the first value that is set counts."""

    def __init__(self) -> None:
        self.value = ""
        self.resume: Callable[[], None] | None = None

    def set(self, value: str) -> None:
        """Note the occurrence, and resume the statement."""
        if not self.value:
            self.value = value
            if self.resume is not None:
                self.resume()

    def __await__(self) -> Generator["Signal", None, str]:
        while not self.value:
            yield self
        return self.value


class Data:
    """The committed content of a server."""

    def __init__(self) -> None:
        self.events: dict[Key, list[Row]] = {}
        self.stable: dict[Key, datetime] = {}

    def add(self, events: dict[Key, Row], stable: dict[Key, datetime]) -> None:
        """Add the rows of a transaction."""
        for key, row in events.items():
            self.events.setdefault(key, []).append(row)
        self.stable |= stable

    def copy(self) -> "Data":
        """Return the same content, to go its own way."""
        data = Data()
        data.events = {key: list(rows) for key, rows in self.events.items()}
        data.stable = dict(self.stable)
        return data

    def rows(self) -> list[Row]:
        """Return all rows of `events`."""
        return [row for rows in self.events.values() for row in rows]


class Transaction:
    """The changes of one transaction, and those that wait for its end."""

    def __init__(self) -> None:
        self.events: dict[Key, Row] = {}
        self.stable: dict[Key, datetime] = {}
        self.is_writing = False
        self.is_logged = False  # in the WAL: committed
        self.waiting: list[Signal] = []
        self.waits_for: Transaction | None = None


class Waiter(Protocol):
    """A backend, as far as a lock knows it."""

    lock_timeout_s: float
    signal: Signal | None


class Session(Protocol):
    """A backend, as far as its server knows it."""

    def drop(self) -> None:
        """End at once, without a reply, and roll back."""
        ...


class Standby:
    """The synchronous standby of a server: it receives the WAL record by record."""

    def __init__(self, data: Data, position: int) -> None:
        self.data = data
        self.position = position
        self.is_away = False
        self.is_receiving = False


class Server:
    """One PostgreSQL server, with the content of its disk."""

    is_unique = True  # a sabotage drops the index

    def __init__(self, world: Surroundings, data: Data, *, deadlock_timeout_s: float) -> None:
        self.world = world
        self.data = data
        self.logged = data.copy()  # in the WAL, visible or not
        self.safe = self.logged  # never lost by a failover
        self.deadlock_timeout_s = deadlock_timeout_s
        self.wal: list[Transaction] = []
        self.standby: Standby | None = None
        # Whether a commit waits for a standby, also while there is none.
        self.is_synchronous = False
        self.timeline = 1
        self.started_at_s = 0.0
        self.is_up = True
        self.is_primary = True
        self.is_role_lax = False  # the role has `synchronous_commit = local`
        self.is_pooled = False
        self.backends: list[Session] = []
        self.days: set[date] = set()  # of the chunks; empty on a plain table
        self.faults: list[PostgresError] = []  # of the next statements that write
        self.names_rows = True  # with the error of a COPY
        self.swallows: Callable[[Row], bool] = lambda _row: False  # a foreign trigger
        self.pending: dict[Key, Transaction] = {}
        self.replication_waits: list[tuple[int, Signal]] = []

    async def insert_event(self, change: Transaction, row: Row, waiter: Waiter) -> bool:
        """Insert a row unless its key is there; return whether it was inserted."""
        key = key_of(row)
        if self.is_unique and not await self._is_free(change, key, waiter):
            return False
        change.events[key] = row
        change.is_writing = True
        return True

    async def enter_stable(
        self, change: Transaction, event_id: bytes, occurred_at: datetime, waiter: Waiter
    ) -> bool:
        """Enter a stable ID unless it is there; return whether it was entered."""
        key: Key = (None, event_id)
        if not await self._is_free(change, key, waiter):
            return False
        change.stable[key] = occurred_at
        return True

    async def commit(self, change: Transaction, waiter: Waiter, *, is_durable: bool) -> bool:
        """Commit a transaction; return whether its wait for the standby was cut short.

        `is_durable` is whether the session waits for the standbys (`synchronous_commit`).
        """
        is_cut_short = False
        if change.is_writing:
            await self._flush()  # the flush
            change.is_logged = True
            self.wal.append(change)
            self.logged.add(change.events, change.stable)
            self.ship()
            if self.is_synchronous and is_durable:
                is_cut_short = await self._replicated(len(self.wal), waiter)
            self.data.add(change.events, change.stable)
        self._end(change)
        return is_cut_short

    def abort(self, change: Transaction) -> None:
        """Roll a transaction back."""
        self._end(change)

    def ship(self) -> None:
        """Send the standby the next record of the WAL that it lacks, if it is there."""
        standby = self.standby
        if standby is None or standby.is_away or standby.is_receiving:
            return
        if standby.position < len(self.wal):
            standby.is_receiving = True
            self.world.later(self.world.delay_s(0.001), lambda: self._received(standby))

    def attach(self) -> None:
        """Begin to replicate to a standby that has all of the WAL up to now."""
        self.standby = Standby(self.logged.copy(), len(self.wal))
        self.safe = self.standby.data
        self._confirm(self.standby.position)

    def crash(self) -> None:
        """Lose the transactions under way; those in the WAL are recovered, replicated or not."""
        for backend in list(self.backends):
            backend.drop()
        self.data = self.logged.copy()
        self.pending = {}
        self.replication_waits = []

    def visible(self, change: Transaction, key: Key) -> list[Row]:
        """Return the rows of a key that a transaction reads: committed ones, and its own."""
        own = change.events.get(key)
        return [*self.data.events.get(key, ()), *([own] if own else ())]

    async def _is_free(self, change: Transaction, key: Key, waiter: Waiter) -> bool:
        """Lock a key; False where another transaction has committed it, or this one has it."""
        while (holder := self.pending.get(key)) is not None:
            if holder is change:
                return False
            await self._wait_for(change, holder, waiter)
        if key in (self.data.stable if key[0] is None else self.data.events):
            return False
        self.pending[key] = change
        change.is_writing = True
        return True

    async def _wait_for(self, change: Transaction, holder: Transaction, waiter: Waiter) -> None:
        signal = waiter.signal = Signal()
        holder.waiting.append(signal)
        change.waits_for = holder
        if waiter.lock_timeout_s:
            self.world.later(waiter.lock_timeout_s, lambda: signal.set("timeout"))
        self.world.later(self.deadlock_timeout_s, lambda: self._check_deadlock(change, signal))
        reason = await signal
        waiter.signal = change.waits_for = None
        if reason == "timeout":
            raise exceptions.LockNotAvailableError("canceling statement due to lock timeout")
        if reason == "deadlock":
            raise exceptions.DeadlockDetectedError("deadlock detected")
        if reason == "cancel":
            raise exceptions.QueryCanceledError("canceling statement due to user request")

    def _check_deadlock(self, change: Transaction, signal: Signal) -> None:
        other = change.waits_for
        while other is not None and other is not change:
            other = other.waits_for
        if other is change:
            signal.set("deadlock")

    async def _flush(self) -> None:
        signal = Signal()
        self.world.later(self.world.delay_s(FLUSH_S), lambda: signal.set("over"))
        await signal

    async def _replicated(self, position: int, waiter: Waiter) -> bool:
        signal = waiter.signal = Signal()
        if self.standby is not None and self.standby.position >= position:
            signal.set("over")
        self.replication_waits.append((position, signal))
        reason = await signal
        waiter.signal = None
        return reason != "over"

    def _received(self, standby: Standby) -> None:
        standby.is_receiving = False
        if standby is not self.standby or standby.is_away or not self.is_up:
            return
        change = self.wal[standby.position]
        standby.data.add(change.events, change.stable)
        standby.position += 1
        self._confirm(standby.position)
        self.ship()

    def _confirm(self, replicated: int) -> None:
        waits, self.replication_waits = self.replication_waits, []
        for position, signal in waits:
            if position <= replicated:
                signal.set("over")
            elif not signal.value:
                self.replication_waits.append((position, signal))

    def _end(self, change: Transaction) -> None:
        for key in (*change.events, *change.stable):
            if self.pending.get(key) is change:
                del self.pending[key]
        for signal in change.waiting:
            signal.set("over")
