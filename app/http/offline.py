"""The HTTP answers of a gateway without a listening socket."""

import asyncio
import socket
from functools import partial
from http import HTTPStatus

import msgspec

from app.errors import Answer
from app.gateway import Gateway
from app.http.app import create_app
from app.http.connection_limits import Connection, ReceiveBudget
from app.http.protocol import GatewayProtocol
from app.http.responses import GatewayErrors, reason_of

HEAD_END = b"\r\n\r\n"


class Answered(msgspec.Struct, frozen=True):
    """The answer to a request, None if the connection was closed; and the error behind it."""

    answer: Answer | None
    error: BaseException | None = None

    @property
    def reason(self) -> str:
        """The reason of an error, as the metrics name it; empty without one."""
        return reason_of(self.error) if self.error else ""


class _RecordedErrors(GatewayErrors):
    """Keeps the last error that became an answer, or closed a connection."""

    last: BaseException | None = None

    def answer(self, exception: BaseException) -> Answer | None:
        self.last = exception
        return super().answer(exception)


class OfflineServer:
    """Answers complete requests as a `Server` does: same protocol, parser, router and limits."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._errors = _RecordedErrors(gateway)

    async def start(self) -> None:
        """Prepare the application."""
        app = create_app(self._gateway, self._errors)
        # Its socket is never bound: Sanic prepares an application only for a server.
        server = await app.create_server(
            sock=socket.socket(), asyncio_server_kwargs={"start_serving": False}
        )
        assert server is not None  # noqa: S101 - None is for a deprecated call
        await server.startup()  # type: ignore[no-untyped-call]
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._protocol = partial(
            GatewayProtocol,
            gateway=self._gateway,
            errors=self._errors,
            budget=ReceiveBudget(),
            loop=self._loop,
            app=app,
            connections=set[Connection](),
        )

    async def close(self) -> None:
        """Close the sockets; once for each start."""
        self._server.close()  # type: ignore[no-untyped-call]
        await asyncio.sleep(0)

    async def answer(self, request: bytes) -> Answered:
        """Return the answer to one request, sent as it is over a connection of its own."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self._errors.last = None
        transport, _ = await self._loop.connect_accepted_socket(self._protocol, theirs)
        reader, writer = await asyncio.open_connection(sock=ours)
        try:
            writer.write(request)
            answer = await _read(reader, has_body=not request.startswith(b"HEAD "))
        except (asyncio.IncompleteReadError, ConnectionError):
            answer = None
        finally:
            writer.transport.abort()
            transport.abort()
            await asyncio.sleep(0)  # both are closed in the next iteration of the loop
        return Answered(answer, self._errors.last)


async def _read(reader: asyncio.StreamReader, has_body: bool) -> Answer:
    status_line, *lines = (await reader.readuntil(HEAD_END)).decode("latin-1").split("\r\n")
    status = HTTPStatus(int(status_line.split(" ", 2)[1]))
    pairs = [line.split(": ", 1) for line in lines if line]
    headers = tuple((name.lower(), value) for name, value in pairs)
    size = int(dict(headers).get("content-length", "0")) if has_body else 0
    return Answer(status, await reader.readexactly(size), headers)
