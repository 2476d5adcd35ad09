"""Limits on connections that would harm others: too many, too large, or never read."""

import asyncio
import resource
from collections.abc import Iterable
from operator import attrgetter
from sys import getsizeof
from types import SimpleNamespace

from sanic import Sanic
from sanic.config import Config
from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from app.telemetry.metrics import UNANSWERED

UNREAD_TIMEOUT_S = 20.0
CONNECTIONS_MAX = 10_000
# File descriptors for the database, Redis, the workspaces file and Python itself.
RESERVED_FILES = 64
# Memory for all incomplete requests of a process: a quarter of the documented container's.
RECEIVED_MAX_BYTES = 128 * 1024 * 1024
# Requests up to this size are never closed for the budget: the connections are limited too.
SMALL_BYTES = 4 * 1024
# Bytes received from one sum to the next, since a sum visits thousands of connections.
ADD_UP_BYTES = 8 * 1024 * 1024


class ReceiveBudget:
    """Bounds the memory of incomplete requests over all connections."""

    def __init__(self) -> None:
        # Bytes received since the last sum.
        self.received = 0
        self.add_up_bytes = ADD_UP_BYTES

    def enforce(self, connections: "Iterable[Connection]") -> None:
        """Close the largest unfinished requests while all of them together exceed the budget."""
        self.received = 0
        # Leaves room for the bytes received until the next sum.
        excess = sum(connection.received_bytes for connection in connections)
        excess -= RECEIVED_MAX_BYTES - self.add_up_bytes
        if excess <= 0:
            return
        large = [each for each in connections if each.received_bytes > SMALL_BYTES]
        large.sort(key=_largest_then_oldest)
        for connection in large:
            if excess <= 0:
                break
            if connection.is_unfinished:
                excess -= connection.received_bytes
                connection.refuse("no_room")


class Connection(HttpProtocol):
    """Sanic's protocol class, within limits."""

    __slots__ = ("_budget", "_unread", "address")

    def __init__(
        self,
        *,
        budget: ReceiveBudget,
        loop: asyncio.AbstractEventLoop,
        app: Sanic[Config, SimpleNamespace],
        connections: "set[Connection]",
        **_: object,
    ) -> None:
        super().__init__(loop=loop, app=app, connections=connections)
        self._budget = budget
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a connection; close silent ones if there are too many."""
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        self.address = str(self.conn_info.client_ip) if self.conn_info else ""
        if len(self.connections) > _connections_max():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Break the reference cycles: the connection is freed at once, with its buffer."""
        super().connection_lost(exc)  # type: ignore[no-untyped-call]
        for timer in (self._callback_check_timeouts, self._unread):
            if timer is not None:
                timer.cancel()
        self._callback_check_timeouts = self._unread = None

    def _make_room(self) -> None:
        """Close the connections that have been silent the longest, but none with a callback."""
        silent = [connection for connection in self.connections if connection.is_silent]
        silent.sort(key=attrgetter("last_active_at"))
        # Several at once, since a search visits thousands; the new one if none is silent.
        for connection in silent[: len(silent) // 50 + 1] or [self]:
            UNANSWERED.labels("no_room").inc()
            connection.close()

    @property
    def last_active_at(self) -> float:
        """The time of the last bytes received or sent, on the clock of `monotonic`."""
        return self._time

    @property
    def is_silent(self) -> bool:
        """Whether no complete request awaits its answer."""
        if self.http is None or self.transport is None or self.transport.is_closing():
            return False
        return self.http.stage is (Stage.REQUEST if self.recv_buffer else Stage.IDLE)

    @property
    def is_unfinished(self) -> bool:
        """Whether the connection waits for its client, to send a request or to read an answer.

        Long pipelines count as well: no vendor sends them.
        """
        if self.http is None or self.transport is None or self.transport.is_closing():
            return False
        is_handled = self.http.stage is Stage.HANDLER and not self.http.request_body
        is_pipelined = len(self.recv_buffer) > SMALL_BYTES
        return not is_handled or is_pipelined or not self._can_write.is_set()

    @property
    def received_bytes(self) -> int:
        """The memory of the received and unhandled bytes."""
        http = self.http
        if http is not None and http.stage is Stage.HANDLER and http.request_body:
            received: int = http.request_bytes - http.request_bytes_left
            return getsizeof(self.recv_buffer) + received
        return getsizeof(self.recv_buffer)

    def refuse(self, reason: str) -> None:
        """Close the connection at once, unanswered."""
        UNANSWERED.labels(reason).inc()
        if self.transport is not None:
            self.transport.abort()

    def close_if_idle(self) -> bool:
        """Close the connection, unless it is busy or unparsed bytes have arrived."""
        return not self.recv_buffer and super().close_if_idle()

    def pause_writing(self) -> None:
        """Wait for the client to read its answers, with a time limit."""
        super().pause_writing()  # type: ignore[no-untyped-call]
        self._unread = self.loop.call_later(UNREAD_TIMEOUT_S, self._give_up)

    def resume_writing(self) -> None:
        """Cancel the time limit: the client has read, or is gone."""
        super().resume_writing()  # type: ignore[no-untyped-call]
        if self._unread is not None:
            self._unread.cancel()

    def _give_up(self) -> None:
        self.refuse("answers_not_read")


def _largest_then_oldest(connection: Connection) -> tuple[int, float]:
    return -connection.received_bytes, connection.last_active_at


def _connections_max() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_limited = files != resource.RLIM_INFINITY
    return min(CONNECTIONS_MAX, files - RESERVED_FILES) if is_limited else CONNECTIONS_MAX
