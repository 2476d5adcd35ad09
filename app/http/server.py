"""The socket of a gateway: listen, accept, and stop without losing a request."""

import asyncio
import errno
import logging
import os
import select
import socket
from collections.abc import Collection
from contextlib import suppress
from functools import partial

from app.gateway import Gateway
from app.http.app import create_app
from app.http.connection_limits import ReceiveBudget
from app.http.protocol import GatewayProtocol
from app.http.responses import GatewayErrors
from app.http.workers import is_orphan
from app.settings import Settings, SettingsError
from app.version import VERSION

BACKLOG = 4096
# Loop iterations: to empty the accept queue of the socket, and to read the last requests.
TURNS_MAX = 100
READ_TURNS = 3
FINISH_POLL_S = 0.02
# Requests in flight have this many commit time-outs for their answers.
PATIENCE_PER_COMMIT = 3

log = logging.getLogger(__name__)


class ListenError(Exception):
    """The address is not available; the message is one line."""


def listen(settings: Settings) -> socket.socket:
    """Return a listening socket; raises SettingsError or ListenError."""
    host, port = settings.host, settings.port
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Kubernetes may connect by IPv4, which Python does not accept on :: by default.
        both = address[0] == "::" and socket.has_dualstack_ipv6()
        return socket.create_server(
            (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
        )
    except (socket.gaierror, UnicodeError):
        raise SettingsError(f"HOST: {host!r} is not an address of this machine") from None
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f"HOST: {host!r} is not an address of this machine") from None
        raise ListenError(
            f"cannot listen on {host} port {port}: {os.strerror(error.errno or 0)} "
            "(HOST and PORT choose another address)"
        ) from None


class Server:
    """A gateway behind a listening socket."""

    def __init__(self, gateway: Gateway, listener: socket.socket) -> None:
        self.gateway = gateway
        self._listener = listener

    async def start(self) -> None:
        """Accept connections."""
        errors = GatewayErrors(self.gateway)
        app = create_app(self.gateway, errors)
        protocol = partial(
            GatewayProtocol, gateway=self.gateway, errors=errors, budget=ReceiveBudget()
        )
        server = await app.create_server(
            sock=self._listener,
            protocol=protocol,  # type: ignore[arg-type] # called like the class
            backlog=BACKLOG,  # Sanic's default, 100, would replace the socket's
            asyncio_server_kwargs={"start_serving": False},
        )
        assert server is not None  # noqa: S101 - None is for a deprecated call
        self._server = server
        self.connections: Collection[GatewayProtocol] = server.connections
        await server.startup()  # type: ignore[no-untyped-call]
        self.gateway.start()
        await self._server.start_serving()  # type: ignore[no-untyped-call]
        log.info("serving", extra={"pid": os.getpid(), "version": VERSION})

    async def stop(self, patience_s: float | None = None) -> None:
        """Drain, answer every request that has arrived by then, and close the gateway."""
        # Orphaned workers leave the port at once: a new parent may be about to listen on it.
        await self.gateway.drain(0 if is_orphan() else self.gateway.settings.drain_pause_s)
        await self._finish(
            patience_s or PATIENCE_PER_COMMIT * self.gateway.settings.commit_timeout_s
        )
        await self.gateway.close()

    async def _finish(self, patience_s: float) -> None:
        """Close the listener and idle connections, and answer all requests that have arrived."""
        queue = select.poll()
        queue.register(self._listener, select.POLLIN)
        for _ in range(TURNS_MAX):
            await asyncio.sleep(0)
            if not queue.poll(0):  # a connection still in the queue would be reset by the close
                break
        self._server.close()  # type: ignore[no-untyped-call]
        for _ in range(READ_TURNS):
            await asyncio.sleep(0)
        for connection in self.connections:
            connection.close_if_idle()
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while self.connections:  # noqa: ASYNC110 - Sanic has no event for it
                    await asyncio.sleep(FINISH_POLL_S)
        for connection in self.connections:
            connection.abort()  # type: ignore[no-untyped-call]
