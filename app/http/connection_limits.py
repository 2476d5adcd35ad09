"""Limits on connections that would harm other ones: too many, too large, or never read."""

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
# For the database, Redis, the workspaces file, and what Python itself opens.
RESERVED_FILES = 64
# What all requests of a process that have not come completely may take: a quarter of what the
# documented container has.
RECEIVED_MAX_BYTES = 128 * 1024 * 1024
# A request of this size stays, however many others there are: connections are limited too.
SMALL_BYTES = 4 * 1024
# How much may come in before they are added up again, over thousands of connections.
ADD_UP_BYTES = 8 * 1024 * 1024


class ReceiveBudget:
    """Bounds the memory of requests that have not come completely, over all connections."""

    def __init__(self) -> None:
        # Bytes that came in since the connections were last added up.
        self.received = 0
        self.add_up_bytes = ADD_UP_BYTES

    def enforce(self, connections: "Iterable[Connection]") -> None:
        """Close the largest unfinished requests where all of them together take too much."""
        self.received = 0
        # Bytes that come in until the next time have room too.
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
    """Sanic's own class, within limits."""

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
        """Accept a connection; close old ones where there are too many."""
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        self.address = str(self.conn_info.client_ip) if self.conn_info else ""
        if len(self.connections) > _connections_max():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """Let go of what leads back to the connection: it is freed at once, with its buffer."""
        super().connection_lost(exc)  # type: ignore[no-untyped-call]
        for timer in (self._callback_check_timeouts, self._unread):
            if timer is not None:
                timer.cancel()
        self._callback_check_timeouts = self._unread = None

    def _make_room(self) -> None:
        """Close the connections that have been silent the longest, but none with a callback."""
        silent = [connection for connection in self.connections if connection.is_silent]
        silent.sort(key=attrgetter("last_active_at"))
        # Several at once: they are searched for among thousands. If there are none, the new one.
        for connection in silent[: len(silent) // 50 + 1] or [self]:
            UNANSWERED.labels("no_room").inc()
            connection.close()

    @property
    def last_active_at(self) -> float:
        """When something was last received or sent, on the clock of `monotonic`."""
        return self._time

    @property
    def is_silent(self) -> bool:
        """Whether no complete request has come that is still to be answered."""
        if self.http is None or self.transport is None or self.transport.is_closing():
            return False
        return self.http.stage is (Stage.REQUEST if self.recv_buffer else Stage.IDLE)

    @property
    def is_unfinished(self) -> bool:
        """Whether more is still to come, or to be read, than the answer to a request.

        Who sends more requests along, before the first is answered, is no vendor.
        """
        if self.http is None or self.transport is None or self.transport.is_closing():
            return False
        is_handled = self.http.stage is Stage.HANDLER and not self.http.request_body
        is_pipelined = len(self.recv_buffer) > SMALL_BYTES
        return not is_handled or is_pipelined or not self._can_write.is_set()

    @property
    def received_bytes(self) -> int:
        """The memory of what has come in and has not been handled."""
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
        """Close the connection, unless a request has arrived that nobody has looked at yet."""
        return not self.recv_buffer and super().close_if_idle()

    def pause_writing(self) -> None:
        """Wait for a caller to read its answers, but not for ever."""
        super().pause_writing()  # type: ignore[no-untyped-call]
        self._unread = self.loop.call_later(UNREAD_TIMEOUT_S, self._give_up)

    def resume_writing(self) -> None:
        """Go on: the caller has read, or is gone."""
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
