"""A wire to a server that can be slowed down, cut, blackholed, or held at a chosen moment."""

import asyncio
from enum import Enum
from typing import Any, cast

CATCH_TIMEOUT_S = 20.0
# What every COPY in binary format begins with.
_COPY_BEGINS = b"PGCOPY\n\xff\r\n\x00"


class Moment(Enum):
    """When to catch a wire: at its next COPY, and how much of it the server has by then."""

    BEFORE_COPY = "before"  # nothing: the events are claimed, and not yet sent
    IN_COPY = "in"  # the first half
    AFTER_COPY = "after"  # all: it commits, and its answer stays here


class Wire:
    """One connection through the proxy. What an end says is not passed on while it is held."""

    def __init__(self, proxy: "Proxy") -> None:
        self.client = _End(self)
        self.server = _End(self)
        self.held: set[_End] = set()
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
        if end is self.client and not self.held and _COPY_BEGINS in data:
            data = self._proxy.spring(self, data)
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
        if self._transport is not None:
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
        """Return the wire of the next COPY, held at this moment of it.

        Raises TimeoutError where none comes: who waits for one sees to it that callbacks do.
        """
        caught: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()
        self._trap = moment, caught
        try:
            async with asyncio.timeout(CATCH_TIMEOUT_S):
                return await caught
        finally:
            self._trap = None

    def spring(self, wire: Wire, data: bytes) -> bytes:
        """Hold a wire on which a COPY begins, if someone waits for one; returns what is kept."""
        if self._trap is None:
            return data
        (moment, caught), self._trap = self._trap, None
        passed = {
            Moment.BEFORE_COPY: 0,
            Moment.IN_COPY: len(data) // 2,
            Moment.AFTER_COPY: len(data),
        }[moment]
        wire.server.send(data[:passed])
        if moment is Moment.AFTER_COPY:
            wire.held = {wire.server}
        else:
            wire.hold()
        caught.set_result(wire)
        return data[passed:]
