"""A wire to a server that can be slowed down, cut, blackholed, or held at a chosen moment."""

import asyncio
import socket
import struct
from enum import Enum
from typing import Any, cast

CATCH_TIMEOUT_S = 60.0
# PostgreSQL's protocol: what every binary COPY begins with, behind the head of its message; the
# end of a transaction as the client asks for it, and as the server tells it.
_COPY_BEGINS = b"PGCOPY\n\xff\r\n\x00"
_COPY_HEAD = struct.Struct("!cI")
_COMMIT_ASKED = b"COMMIT\x00"
# The last is what a batch tries that has found a duplicate with its COPY.
_COMMIT_TOLD = (b"COPY ", b"COMMIT\x00", b"INSERT 0 ")
_IDLE = b"Z\x00\x00\x00\x05I"
# A socket with this option is closed with a reset.
_LINGER_NOT = struct.pack("ii", 1, 0)


class Moment(Enum):
    """When to catch a wire: where its next batch is by then."""

    BEFORE_COPY = "before its COPY"  # the events are claimed, and not yet sent
    IN_COPY = "in its COPY"  # the server has half of the rows, and has opened their chunks
    BEFORE_COMMIT = "before its COMMIT"  # the rows are written and locked (only with stable IDs)
    AFTER_COMMIT = "after its COMMIT"  # they are committed, and the gateway does not know


class Wire:
    """One connection through the proxy. What an end says is not passed on while it is held."""

    def __init__(self, proxy: "Proxy") -> None:
        self.client = _End(self)
        self.server = _End(self)
        self.held: set[_End] = set()
        self.has_copied = False
        self._proxy = proxy
        self._kept: list[tuple[_End, bytes]] = []
        self._connecting: asyncio.Task[None] | None = None

    def connected(self, end: "_End") -> None:
        """Open the other half, when the client has come."""
        if end is self.client:
            self._proxy.wires.add(self)
            if self._proxy.is_blackhole:
                self.hold()
            self._connecting = asyncio.create_task(self._connect())

    def received(self, end: "_End", data: bytes) -> None:
        """Pass on what one end has sent, unless it is held."""
        if not self.held:
            data = self._proxy.spring(self, end, data)
        if end in self.held:
            self._kept.append((end, data))
        elif end is self.client:
            self.server.send(data)
        elif self._proxy.delay_s:
            asyncio.get_running_loop().call_later(self._proxy.delay_s, self.client.send, data)
        else:
            self.client.send(data)

    def closed(self) -> None:
        """Close the other end too; behind a held wire nobody hears of it."""
        if not self.held:
            self.cut()

    def hold(self) -> None:
        """Let nothing pass, in either direction, and tell nobody."""
        self.held = {self.client, self.server}

    def cut(self) -> None:
        """End both halves at once, with a reset."""
        self._proxy.wires.discard(self)
        if self._connecting is not None:
            self._connecting.cancel()
        self.client.abort()
        self.server.abort()

    def release(self) -> None:
        """Let pass what was held, in the order in which it came."""
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


class _End(asyncio.Protocol):
    def __init__(self, wire: Wire) -> None:
        self.is_gone = False
        self._wire = wire
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self.is_gone

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._wire.connected(self)
        for data in self._early:
            self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._wire.received(self, data)

    def connection_lost(self, _: Exception | None) -> None:
        self.is_gone = True
        self._wire.closed()

    def send(self, data: bytes) -> None:
        if self._transport is None:
            self._early.append(data)
        elif not self.is_gone:
            self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None and not self.is_gone:
            ours: Any = self._transport.get_extra_info("socket")
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
            self._transport.abort()


class Proxy:
    """Listens on a port of 127.0.0.1 and passes everything on to a server there.

    `delay_s` is how much later each piece of an answer arrives.
    """

    def __init__(self, target_port: int) -> None:
        self.target = ("127.0.0.1", target_port)
        self.delay_s = 0.0
        self.is_blackhole = False
        self.wires: set[Wire] = set()
        self.port = 0
        self._listener: Any = None
        self._trap: tuple[Moment, asyncio.Future[Wire]] | None = None

    async def open(self) -> None:
        """Listen; `port` is known then."""
        self._listener = await asyncio.get_running_loop().create_server(
            lambda: Wire(self).client, "127.0.0.1", self.port
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Cut every wire, and listen no more."""
        self.cut()
        self._listener.close()

    def cut(self) -> None:
        """Reset every connection; new ones pass."""
        for wire in list(self.wires):
            wire.cut()

    def blackhole(self) -> None:
        """Let nothing pass, on old and new connections, and tell nobody."""
        self.is_blackhole = True
        for wire in self.wires:
            wire.hold()

    def restore(self) -> None:
        """Let new connections pass; those that were held are reset."""
        self.is_blackhole = False
        self.cut()

    async def catch(self, moment: Moment) -> Wire:
        """Return the wire of the next batch that comes to this moment, held there.

        Raises TimeoutError where none comes: who waits for one sees to it that callbacks do.
        """
        caught: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        self._trap = moment, caught
        for wire in self.wires:
            wire.has_copied = False
        try:
            async with asyncio.timeout(CATCH_TIMEOUT_S):
                return await caught
        finally:
            self._trap = None

    def spring(self, wire: Wire, end: _End, data: bytes) -> bytes:
        """Hold a wire that comes to the moment which somebody waits for; returns what is kept."""
        if self._trap is None:
            return data
        moment, caught = self._trap
        begins = data.find(_COPY_BEGINS) if end is wire.client else -1
        wire.has_copied |= begins >= 0
        if not _is_there(moment, wire, end, data, begins):
            return data
        self._trap = None
        wire.hold()
        caught.set_result(wire)
        if moment is Moment.IN_COPY:
            sent, data = _halves(data, begins)
            wire.server.send(sent)
        return data


def _is_there(moment: Moment, wire: Wire, end: _End, data: bytes, begins: int) -> bool:
    match moment:
        case Moment.BEFORE_COPY | Moment.IN_COPY:
            return begins >= 0
        case Moment.BEFORE_COMMIT:
            return wire.has_copied and end is wire.client and _COMMIT_ASKED in data
        case Moment.AFTER_COMMIT:
            is_told = any(word in data for word in _COMMIT_TOLD)
            return wire.has_copied and end is wire.server and is_told and data.endswith(_IDLE)


def _halves(data: bytes, begins: int) -> tuple[bytes, bytes]:
    """Divide the rows of a COPY into two messages: the server looks at no half of one."""
    head = begins - _COPY_HEAD.size
    kind, length = _COPY_HEAD.unpack_from(data, head)
    size = length - 4  # the length counts itself
    half = min(size, len(data) - begins) // 2
    middle = begins + half
    return (
        data[:head] + _COPY_HEAD.pack(kind, 4 + half) + data[begins:middle],
        _COPY_HEAD.pack(kind, 4 + size - half) + data[middle:],
    )
