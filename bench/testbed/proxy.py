"""A TCP proxy that delays, resets, blackholes, or stops at a chosen moment of a COPY."""

import asyncio
import socket
import struct
from enum import Enum
from typing import cast

CATCH_TIMEOUT_S = 60.0
# PostgreSQL's protocol: the signature of a binary COPY, after the head of its message; the end of a
# transaction in the client's query, and in the server's messages.
_COPY_BEGINS = b"PGCOPY\n\xff\r\n\x00"
_COPY_HEAD = struct.Struct("!cI")
_COMMIT = b"COMMIT\x00"
# A batch inserts after a COPY that found a duplicate.
_CONFIRMED = (b"COPY ", b"COMMIT\x00", b"INSERT 0 ")
# In the statement of some drops, whose reasons it has; no event holds it.
_DROPS = b"unmapped_event"
_IDLE = b"Z\x00\x00\x00\x05I"
# A socket with this option is closed with a reset.
_LINGER_NOT = struct.pack("ii", 1, 0)


class Moment(Enum):
    """The moment at which a connection is held: a step of its next batch."""

    BEFORE_COPY = "before its COPY"  # the events are claimed and not yet sent
    IN_COPY = "in its COPY"  # the server has half of the rows, and has opened their chunks
    BEFORE_COMMIT = "before its COMMIT"  # the rows are written and locked (only with stable IDs)
    AFTER_COMMIT = "after its COMMIT"  # committed, and the answer has not arrived
    BEFORE_DROPS = "before its drops"
    AFTER_DROPS = "after its drops"  # committed, and the answer has not arrived


class ProxiedConnection:
    """One connection through the proxy. Data is kept back while it is held."""

    def __init__(self, proxy: "Proxy") -> None:
        self.client = End(self)
        self.server = End(self)
        self.held: set[End] = set()
        self.has_sent = False
        self._proxy = proxy
        self._kept: list[tuple[End, bytes]] = []
        self._connecting: asyncio.Task[None] | None = None

    def connected(self, end: "End") -> None:
        """Connect to the server after the client has connected."""
        if end is self.client:
            self._proxy.connections.add(self)
            if self._proxy.is_blackhole:
                self.hold()
            self._connecting = asyncio.create_task(self._connect())

    def received(self, end: "End", data: bytes) -> None:
        """Forward the data of one end, unless the connection is held."""
        if not self.held:
            data = self._proxy.passing(self, end, data)
        if end in self.held:
            self._kept.append((end, data))
        elif end is self.client:
            self.server.send(data)
        elif self._proxy.delay_s:
            asyncio.get_running_loop().call_later(self._proxy.delay_s, self.client.send, data)
        else:
            self.client.send(data)

    def closed(self) -> None:
        """Close the other end too, unless the connection is held."""
        if not self.held:
            self.cut()

    def hold(self) -> None:
        """Hold the data of both directions, without a sign to either end."""
        self.held = {self.client, self.server}

    def cut(self) -> None:
        """Reset both ends."""
        self._proxy.connections.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        self.client.abort()
        self.server.abort()

    def release(self) -> None:
        """Forward the data kept back, in its order, and all later data."""
        self.held = set()
        kept, self._kept = self._kept, []
        for end, data in kept:
            (self.server if end is self.client else self.client).send(data)
        if self.client.is_gone or self.server.is_gone:
            self.cut()

    async def _connect(self) -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: self.server, *self._proxy.target
            )
        except OSError:
            self.cut()


class End(asyncio.Protocol):
    """One end of a proxied connection."""

    def __init__(self, connection: ProxiedConnection) -> None:
        self.is_gone = False
        self._connection = connection
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    @property
    def is_open(self) -> bool:
        """Whether data can be sent."""
        return self._transport is not None and not self.is_gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)
        self._connection.connected(self)
        for data in self._early:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        """Forward data; asyncio calls this."""
        self._connection.received(self, data)

    def connection_lost(self, _: Exception | None) -> None:
        """End; asyncio calls this."""
        self.is_gone = True
        self._connection.closed()

    def send(self, data: bytes) -> None:
        """Send data, once connected."""
        if self._transport is None:
            self._early.append(data)
        elif not self.is_gone:
            self._transport.write(data)

    def abort(self) -> None:
        """Close with a reset, unless the other side has closed: then it has no socket any more.

        Nor has it one when its connecting was cancelled at the last moment.
        """
        if self._transport is not None and not self._transport.is_closing():
            connection: socket.socket | None = self._transport.get_extra_info("socket")
            if connection is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self._transport.abort()


class Proxy:
    """Listens on a port of a loopback address, and forwards everything to a server on 127.0.0.1.

    `delay_s` is added to each piece of an answer.
    """

    def __init__(self, target_port: int, host: str = "127.0.0.1") -> None:
        self._host = host
        self.target = ("127.0.0.1", target_port)
        self.delay_s = 0.0
        self.is_blackhole = False
        self.connections: set[ProxiedConnection] = set()
        self.port = 0
        self._listener: asyncio.Server | None = None
        self._awaited: tuple[Moment, asyncio.Future[ProxiedConnection]] | None = None

    async def open(self) -> None:
        """Listen on `port`: on a free one if it is 0, which it then is no longer."""
        self._listener = listener = await asyncio.get_running_loop().create_server(
            lambda: ProxiedConnection(self).client, self._host, self.port
        )
        self.port = listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Reset every connection, and stop listening."""
        self.cut()
        if self._listener is not None:
            self._listener.close()

    def cut(self) -> None:
        """Reset every connection; new ones are forwarded."""
        for connection in list(self.connections):
            connection.cut()

    def blackhole(self) -> None:
        """Hold all connections, old and new, without a sign to either end."""
        self.is_blackhole = True
        for connection in self.connections:
            connection.hold()

    def restore(self) -> None:
        """Forward new connections; held ones are reset."""
        self.is_blackhole = False
        self.cut()

    async def catch(self, moment: Moment) -> ProxiedConnection:
        """Return the connection of the next batch that comes to this moment, held there.

        Raises TimeoutError where none comes; the caller sends callbacks meanwhile.
        """
        caught: asyncio.Future[ProxiedConnection] = asyncio.get_running_loop().create_future()
        self._awaited = moment, caught
        for connection in self.connections:
            connection.has_sent = False
        try:
            async with asyncio.timeout(CATCH_TIMEOUT_S):
                return await caught
        finally:
            self._awaited = None

    def passing(self, connection: ProxiedConnection, end: End, data: bytes) -> bytes:
        """Hold a connection at the moment of `catch`; returns the data left to forward."""
        if self._awaited is None:
            return data
        moment, caught = self._awaited
        mark = _DROPS if moment in (Moment.BEFORE_DROPS, Moment.AFTER_DROPS) else _COPY_BEGINS
        begins = data.find(mark) if end is connection.client else -1
        connection.has_sent |= begins >= 0
        if not _is_at(moment, connection, end, data, begins):
            return data
        self._awaited = None
        connection.hold()
        caught.set_result(connection)
        if moment is Moment.IN_COPY:
            sent, data = _halves(data, begins)
            connection.server.send(sent)
        return data


def _is_at(
    moment: Moment, connection: ProxiedConnection, end: End, data: bytes, begins: int
) -> bool:
    match moment:
        case Moment.BEFORE_COPY | Moment.IN_COPY | Moment.BEFORE_DROPS:
            return begins >= 0
        case Moment.BEFORE_COMMIT:
            return connection.has_sent and end is connection.client and _COMMIT in data
        case Moment.AFTER_COMMIT | Moment.AFTER_DROPS:
            is_confirmed = any(word in data for word in _CONFIRMED)
            return (
                connection.has_sent
                and end is connection.server
                and is_confirmed
                and data.endswith(_IDLE)
            )


def _halves(data: bytes, begins: int) -> tuple[bytes, bytes]:
    """Divide the rows of a COPY into two messages: the server reads whole messages only."""
    head = begins - _COPY_HEAD.size
    kind, length = _COPY_HEAD.unpack_from(data, head)
    size = length - 4  # the length counts itself
    half = min(size, len(data) - begins) // 2
    middle = begins + half
    return (
        data[:head] + _COPY_HEAD.pack(kind, 4 + half) + data[begins:middle],
        _COPY_HEAD.pack(kind, 4 + size - half) + data[middle:],
    )
