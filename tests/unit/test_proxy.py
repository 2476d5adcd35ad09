"""The proxy of the tests, with ends that are closed before their protocol knows it."""

import asyncio

from bench.testbed.proxy import End, ProxiedConnection, Proxy


class Closed(asyncio.Transport):
    """A transport with a closed socket, before its protocol knows it."""

    def is_closing(self) -> bool:
        """See asyncio."""
        return True

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Fail as uvloop does."""
        raise ValueError(f"{name}, {default}: negative file descriptor")


class Cancelled(ProxiedConnection):
    """A connection whose connecting is cancelled at the moment at which it has succeeded."""

    connecting: asyncio.Task[None] | None = None

    def connected(self, end: End) -> None:
        """See ProxiedConnection."""
        super().connected(end)
        if end is self.server and self._connecting is not None:
            self.connecting = self._connecting
            self._connecting.cancel()


async def test_end_that_is_closed_already_is_not_reset() -> None:
    """When both ends are lost at once, the first one does not touch the socket of the second."""
    proxy = Proxy(1)
    connection = ProxiedConnection(proxy)
    proxy.connections.add(connection)
    connection.server.connection_made(Closed())
    connection.client.connection_lost(None)
    assert not proxy.connections


async def test_connection_may_be_cut_after_its_connecting_was_cancelled() -> None:
    """The server's end has no socket then, and uvloop does not call it closing."""
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with listener:
        proxy = Proxy(listener.sockets[0].getsockname()[1])
        connection = Cancelled(proxy)
        connection.connected(connection.client)
        async with asyncio.timeout(30):
            while connection.connecting is None:
                await asyncio.sleep(0)
            await asyncio.wait([connection.connecting])
        connection.cut()
    assert not proxy.connections
