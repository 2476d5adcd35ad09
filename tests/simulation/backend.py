"""A session of the modelled server: its settings, its transaction, and the work of a statement."""

from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import NamedTuple
from uuid import UUID

from asyncpg import exceptions
from asyncpg.exceptions import PostgresError

from tests.simulation import sql
from tests.simulation.database import Row, Server, Signal, Surroundings, Transaction
from tests.simulation.sql import POISON, Rows, Search, Write

# Behind a pooler, where it is a setting of the role.
IDLE_TIMEOUT_S = 0.9
_IDLE_TIMEOUT = "idle_in_transaction_session_timeout"


class Reply(NamedTuple):
    """The reply to a message; `is_wait_cancelled` is the warning of a commit (01000)."""

    rows: Rows
    status: str
    is_wait_cancelled: bool = False


class Backend:
    """The server's side of one connection."""

    def __init__(self, server: Server, world: Surroundings, settings: dict[str, str]) -> None:
        self.server = server
        self.world = world
        self.is_alive = True
        self.is_durable = not server.is_role_lax
        self.lock_timeout_s = int(settings.get("lock_timeout", "0")) / 1000
        self.signal: Signal | None = None
        self.change: Transaction | None = None
        self.is_failed = False
        idle_ms = settings.get(_IDLE_TIMEOUT)
        self.idle_timeout_s = int(idle_ms) / 1000 if idle_ms else IDLE_TIMEOUT_S
        self.messages = 0
        self.on_end: Callable[[], None] = lambda: None
        self._is_abandoned = False
        self._work: Coroutine[Signal, None, Reply] | None = None
        self._reply: Callable[[Reply | PostgresError], None] = lambda _reply: None
        server.backends.append(self)

    @property
    def is_in_transaction(self) -> bool:
        """Whether the server reports a transaction with its reply, failed or not."""
        return self.change is not None

    def receive(
        self,
        message: str,
        arguments: Sequence[object],
        reply: Callable[[Reply | PostgresError], None],
    ) -> None:
        """Run one message, and reply; nothing follows where the server ends before."""
        self._reply = reply
        self._work = self._run(message, arguments)
        self._advance()

    def cancel(self) -> None:
        """Cancel the wait of the statement under way, if it waits."""
        if self.signal is not None:
            self.signal.set("cancel")

    def hang_up(self) -> None:
        """Note that the client is gone: the server reads that after the statement under way."""
        if self._work is None:
            self.drop()
        else:
            self._is_abandoned = True

    def terminate(self) -> None:
        """End the session as an administrator or a time-out does."""
        if self.change is not None and self.change.is_logged:
            # Committed: only its wait for the standby ends.
            self._is_abandoned = True
            if self.signal is not None:
                self.signal.set("terminate")
        else:
            self.drop()

    def drop(self) -> None:
        """End at once, without a reply, and roll back: so does a crash of the server."""
        if self.is_alive:
            self.is_alive = False
            self._work = None
            self.server.backends.remove(self)
            if self.change is not None:
                self.server.abort(self.change)
            self.on_end()

    def _advance(self) -> None:
        if self._work is None:
            return
        try:
            signal = self._work.send(None)
        except StopIteration as done:
            self._end_message(done.value)
        except PostgresError as error:
            self._end_message(error)
        else:
            signal.resume = lambda: self.world.later(0, self._advance)

    def _end_message(self, reply: Reply | PostgresError) -> None:
        self._work = None
        self.messages += 1
        if self._is_abandoned:
            self.drop()
            return
        if self.change is not None:
            number = self.messages
            self.world.later(self.idle_timeout_s, lambda: self._check_idle(number))
        self._reply(reply)

    def _check_idle(self, number: int) -> None:
        if self.messages == number and self._work is None:
            self.terminate()

    async def _run(self, message: str, arguments: Sequence[object]) -> Reply:
        if message in ("COMMIT", "ROLLBACK"):
            return await self._finish(message)
        if self.is_failed:
            raise exceptions.InFailedSQLTransactionError("current transaction is aborted")
        if (settings := sql.settings_of(message)) is not None:
            if settings.lock_timeout_s is not None:
                self.lock_timeout_s = settings.lock_timeout_s
            self.is_durable = self.is_durable or settings.is_durable
            if message.startswith("BEGIN"):
                self.change = Transaction()
            return Reply([], message)
        write = sql.write_of(message)
        if write is None:
            rows = sql.read(message, arguments, self.server, self.world.wall_s())
            return Reply(rows, f"SELECT {len(rows)}")
        if self.change is None:
            return await self._autocommit(write, arguments)
        try:
            return await self._write(self.change, write, arguments)
        except PostgresError:
            self.is_failed = True
            self.server.abort(self.change)  # its locks are free before the ROLLBACK
            raise

    async def _autocommit(self, write: Search, arguments: Sequence[object]) -> Reply:
        change = self.change = Transaction()
        try:
            reply = await self._write(change, write, arguments)
        except PostgresError:
            self.change = None
            self.server.abort(change)
            raise
        return await self._commit(change, reply)

    async def _finish(self, message: str) -> Reply:
        change, is_failed = self.change, self.is_failed
        self.is_failed = False
        if change is None:
            return Reply([], message)  # with a warning
        if is_failed or message == "ROLLBACK":
            self.change = None
            self.server.abort(change)
            return Reply([], "ROLLBACK")
        return await self._commit(change, Reply([], "COMMIT"))

    async def _commit(self, change: Transaction, reply: Reply) -> Reply:
        is_cut_short = await self.server.commit(change, self, is_durable=self.is_durable)
        self.change = None
        return reply._replace(is_wait_cancelled=is_cut_short)

    async def _write(
        self, change: Transaction, write: Search, arguments: Sequence[object]
    ) -> Reply:
        if self.server.faults:
            raise self.server.faults.pop(0)
        match write.kind:
            case Write.COPY:
                (data,) = arguments
                assert isinstance(data, bytes)
                return await self._copy(change, list(sql.copied_rows(data)))
            case Write.INSERT:
                rows = list(sql.inserted_rows(arguments))
                return await self._insert(change, rows)
            case Write.ENTER_STABLE:
                return await self._enter_stable(change, arguments)
            case Write.FIND_ROWS:
                return self._find_rows(change, write, arguments)
            case Write.FIND_STABLE:
                return self._find_stable(change, write, arguments)

    async def _copy(self, change: Transaction, rows: Sequence[Row]) -> Reply:
        # All rows are read before the first one is inserted.
        for number, row in enumerate(rows, 1):
            if is_poison(row):
                context = f"COPY events, line {number}, column user_id"
                raise _refused(context if self.server.names_rows else "")
        copied = 0
        for row in rows:
            if self.server.swallows(row):
                continue
            if not await self.server.insert_event(change, row, self):
                raise exceptions.UniqueViolationError("duplicate key value")
            copied += 1
        return Reply([], f"COPY {copied}")

    async def _insert(self, change: Transaction, rows: Sequence[Row]) -> Reply:
        if any(map(is_poison, rows)):  # the arrays are read first
            raise _refused("")
        written: Rows = []
        for row in rows:
            if not self.server.swallows(row) and await self.server.insert_event(change, row, self):
                written.append((UUID(bytes=row.event_id),))
        return Reply(written, f"INSERT 0 {len(written)}")

    async def _enter_stable(self, change: Transaction, arguments: Sequence[object]) -> Reply:
        ids, times = arguments
        assert isinstance(ids, list)
        assert isinstance(times, list)
        entered: Rows = []
        for id_, time in zip(ids, times, strict=True):
            if await self.server.enter_stable(change, id_.bytes, time, self):
                entered.append((id_,))
        return Reply(entered, f"INSERT 0 {len(entered)}")

    def _find_rows(self, change: Transaction, write: Search, arguments: Sequence[object]) -> Reply:
        times, ids, since, until = arguments
        assert isinstance(times, list)
        assert isinstance(ids, list)
        assert isinstance(since, type(times[0]))
        assert isinstance(until, type(times[0]))
        found = [
            (id_, row.received_at)
            for time, id_ in zip(times, ids, strict=True)
            if since <= time <= until
            for row in self.server.visible(change, (time, id_.bytes))
        ]
        return _found(change, write, *zip(*found, strict=True))

    def _find_stable(
        self, change: Transaction, write: Search, arguments: Sequence[object]
    ) -> Reply:
        (ids,) = arguments
        assert isinstance(ids, list)
        known = self.server.data.stable.keys() | change.stable.keys()
        found = [id_ for id_ in ids if (None, id_.bytes) in known]
        return _found(change, write, *([found] if found else []))


def is_poison(row: Row) -> bool:
    """Whether the server refuses a row for its data."""
    return row.user_id is not None and POISON in row.user_id


def _refused(context: str) -> PostgresError:
    error = exceptions.CharacterNotInRepertoireError("invalid byte sequence for encoding")
    error.context = context
    return error


def _found(change: Transaction, write: Search, *columns: Iterable[object]) -> Reply:
    """Return one row with an array for each column; none where nothing was found."""
    if not columns:
        return Reply([], "SELECT 0")
    change.is_writing = change.is_writing or write.writes_message
    return Reply([(*map(list, columns), b"")], "SELECT 1")
