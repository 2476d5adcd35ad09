"""Connections that harm the others: too many of them, or with answers that nobody reads."""

import asyncio
import resource
from operator import attrgetter
from time import monotonic

from sanic.http import Stage
from sanic.server.protocols.http_protocol import HttpProtocol

from app.metrics import UNANSWERED

UNREAD_TIMEOUT_S = 20.0
CONNECTIONS_MAX = 10_000
# For the database, Redis, the workspaces file, and what Python itself opens.
RESERVED_FILES = 64


class Connection(HttpProtocol):
    """Sanic's own class, but for callers that do not read their answers, or are too many."""

    __slots__ = ("_buffer_max", "_more", "_unread")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take a new connection, and have it in place of an old one where there are too many."""
        super().connection_made(transport)  # type: ignore[no-untyped-call]
        self._unread: asyncio.TimerHandle | None = None
        self._more: asyncio.Future[None] | None = None
        self._buffer_max: int = self.app.config.REQUEST_BUFFER_SIZE
        if len(self.connections) > _connections_max():
            self._make_room()

    def _make_room(self) -> None:
        """Close the connections that have been silent the longest, but none with a callback."""
        silent = [connection for connection in self.connections if connection.is_silent]
        silent.sort(key=attrgetter("_time"))
        # Several at once: they are searched for among thousands. If there are none, the new one.
        for connection in silent[: len(silent) // 50 + 1] or [self]:
            UNANSWERED.labels("no_room").inc()
            connection.close()

    @property
    def is_silent(self) -> bool:
        """Whether no complete request has come that is still to be answered."""
        if self.http is None or self.transport is None or self.transport.is_closing():
            return False
        return self.http.stage is (Stage.REQUEST if self.recv_buffer else Stage.IDLE)

    def data_received(self, data: bytes) -> None:
        """Take what has come in, and wake who waits for it."""
        self._time = monotonic()
        self.recv_buffer += data
        if len(self.recv_buffer) >= self._buffer_max and self.transport is not None:
            self.transport.pause_reading()
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    async def receive_more(self) -> None:
        """Wait until more has come in.

        Sanic waits for an `asyncio.Event`, which each time (1 µs) asks for the ID of the process.
        """
        if self.transport is not None:
            self.transport.resume_reading()
        self._more = self.loop.create_future()
        await self._more

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
        UNANSWERED.labels("answers_not_read").inc()
        if self.transport is not None:
            self.transport.abort()


def _connections_max() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    is_limited = files != resource.RLIM_INFINITY
    return min(CONNECTIONS_MAX, files - RESERVED_FILES) if is_limited else CONNECTIONS_MAX
