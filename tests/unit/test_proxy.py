"""The proxy of the tests, with two ends that are closed at the same moment."""

import asyncio

from bench.testbed.proxy import ProxiedConnection, Proxy


class Closed(asyncio.Transport):
    """A transport with a closed socket, before its protocol knows it."""

    def is_closing(self) -> bool:
        """See asyncio."""
        return True

    def get_extra_info(self, name: str, default: object = None) -> object:
        """Fail as uvloop does."""
        raise ValueError(f"{name}, {default}: negative file descriptor")


async def test_end_that_is_closed_already_is_not_reset() -> None:
    """When both ends are lost at once, the first one does not touch the socket of the second."""
    proxy = Proxy(1)
    connection = ProxiedConnection(proxy)
    proxy.connections.add(connection)
    connection.server.connection_made(Closed())
    connection.client.connection_lost(None)
    assert not proxy.connections
