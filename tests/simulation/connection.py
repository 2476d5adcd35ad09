"""The client's side of a connection to the modelled PostgreSQL: the driver, as the sink uses it.

Only the methods of asyncpg below the sink's own `Session` are replaced. A message is under way for
a while in each direction, and the server works on after its client has given up.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from asyncpg import exceptions
from asyncpg.exceptions import PostgresError

from sinks.timescale.session import Session
from tests.simulation.backend import Backend, Reply
from tests.simulation.loop import PROCESS, Process
from tests.simulation.world import World

# The server's warning about a cancelled wait for a standby: severity, SQLSTATE, function.
_CANCELLED_WAIT = {"S": "WARNING", "C": "01000", "R": "SyncRepWaitForLSN"}
_LATENCY_S = 0.0004


class SimulatedSession(Session):
    """A connection to a backend of the model."""

    def __init__(self, world: World, backend: Backend, process: Process) -> None:
        self._protocol = self._proxy = self._pool_holder = None
        self._listeners_of_logs: list[Callable[..., None]] = []
        self._world = world
        self._backend = backend
        self._process = process
        self._is_lost = self._has_transaction = False
        self._waiter: asyncio.Future[Reply] | None = None
        # Set when the server has replied to a statement whose caller has given up.
        self._late_reply: asyncio.Future[None] | None = None
        backend.on_end = self._server_has_gone
        world.sessions.append(self)

    def is_closed(self) -> bool:
        """See asyncpg."""
        return self._is_lost

    def is_in_transaction(self) -> bool:
        """See asyncpg."""
        return self._has_transaction

    def get_server_pid(self) -> int:
        """See asyncpg."""
        return 1

    def add_log_listener(self, callback: Any) -> None:
        """See asyncpg."""
        self._listeners_of_logs.append(callback)

    def limit_delivery(self, timeout_ms: int) -> None:
        """There is no socket, and nothing is delivered later than the network's longest delay."""

    async def execute(self, query: str, *args: object, **_: object) -> str:
        """See asyncpg."""
        assert not args
        return (await self._ask(query)).status

    async def _execute(
        self, query: str, args: Sequence[object], limit: int, _timeout: None, **_: object
    ) -> list[tuple[object, ...]]:
        rows = (await self._ask(query, *args)).rows
        return rows[:limit] if limit else rows

    async def _copy_in(self, statement: str, source: memoryview, _timeout: None) -> str:
        return (await self._ask(statement, bytes(source))).status

    async def close(self, **_: object) -> None:
        """See asyncpg: waits for the reply to a cancelled statement."""
        try:
            if self._waiter is not None and not self._is_lost:
                self._late_reply = asyncio.get_running_loop().create_future()
                await self._late_reply
        finally:
            self.terminate()

    def terminate(self) -> None:
        """See asyncpg."""
        if not self._is_lost:
            self._is_lost = True
            self._world.sessions.remove(self)
            self._world.later(self._world.delay_s(_LATENCY_S), self._backend.hang_up)

    def cut(self) -> None:
        """Break the connection: each side finds out in its own time."""
        self._world.later(self._world.delay_s(_LATENCY_S), self._backend.hang_up)
        self._server_has_gone()

    @property
    def owner(self) -> Process:
        """The process that has opened it."""
        return self._process

    @property
    def backend(self) -> Backend:
        """The server's side."""
        return self._backend

    async def _ask(self, message: str, *arguments: object) -> Reply:
        if self._is_lost:
            raise exceptions.InterfaceError("connection is closed")
        if self._waiter is not None:
            raise exceptions.InterfaceError("another operation is in progress")
        waiter: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._waiter = waiter
        world = self._world
        world.later(self._world.transit_s(self), partial(self._arrive, message, arguments))
        try:
            reply = await waiter
        except asyncio.CancelledError:
            # asyncpg sends a request to cancel; the waiter stays until the late reply.
            world.later(world.transit_s(self), self._backend.cancel)
            raise
        except BaseException:
            self._waiter = None
            raise
        self._waiter = None
        return reply

    def _arrive(self, message: str, arguments: Sequence[object]) -> None:
        if not self._backend.is_alive:
            return
        trap = self._world.spring_trap(self, message)
        if trap == "before":
            self.cut()
        else:
            self._backend.receive(message, arguments, self._replied)
            if trap == "after":  # or during, where the statement waits
                self.cut()

    def _replied(self, reply: Reply | PostgresError) -> None:
        deliver = partial(self._deliver, reply, has_transaction=self._backend.is_in_transaction)
        self._world.at(self._process, self._world.transit_s(self), deliver)

    def _deliver(self, reply: Reply | PostgresError, *, has_transaction: bool) -> None:
        if self._is_lost or self._waiter is None:
            return
        self._has_transaction = has_transaction
        if self._waiter.done():
            if self._late_reply is not None and not self._late_reply.done():
                self._late_reply.set_result(None)
            self._waiter = None
        elif isinstance(reply, PostgresError):
            self._waiter.set_exception(reply)
        else:
            if reply.is_wait_cancelled:
                self._note_warning()
            self._waiter.set_result(reply)

    def _note_warning(self) -> None:
        message = exceptions.PostgresLogMessage.new(_CANCELLED_WAIT)
        for listener in self._listeners_of_logs:
            listener(self, message)

    def _server_has_gone(self) -> None:
        self._world.at(self._process, self._world.transit_s(self), self._lose)

    def _lose(self) -> None:
        if self._is_lost:
            return
        self._is_lost = True
        self._world.sessions.remove(self)
        error: Exception = exceptions.ConnectionDoesNotExistError("closed in the middle")
        if self._world.random.random() < 0.3:
            error = ConnectionResetError("connection reset by peer")
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
            self._waiter.exception()  # its caller may be cancelled at the same time
        if self._late_reply is not None and not self._late_reply.done():
            self._late_reply.set_result(None)


async def connect(
    world: World, url: str, *, server_settings: Mapping[str, str], **_: object
) -> SimulatedSession:
    """Return a connection to the host of an address; takes the place of `asyncpg.connect`."""
    process = PROCESS.get()
    assert process is not None
    server = world.hosts[urlsplit(url).hostname or ""]
    await asyncio.sleep(world.delay_s(_LATENCY_S))
    if not server.is_up:
        raise ConnectionRefusedError("connection refused")
    if server.is_pooled and len(server_settings) > 1:
        raise exceptions.ProtocolViolationError("unsupported startup parameter")
    return SimulatedSession(world, Backend(server, world, dict(server_settings)), process)
