"""HTTP as vendors really send it, and connections that are closed without an answer.

Sanic answers a request that is too large, too slow or not quite HTTP with a 4xx of its own. For a
vendor that is final: the callback would be lost. Here such a request is repaired where that is
safe, and otherwise its connection is closed: the vendor retries.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from time import monotonic
from types import SimpleNamespace

from sanic import Request, Sanic
from sanic.config import Config
from sanic.exceptions import BadRequest, RequestCancelled
from sanic.http import Http, Stage

from app.access import counted_address
from app.errors import Answer, MalformedBody, Unreadable
from app.gateway import Gateway
from app.http import fast_path
from app.http.connection_limits import Connection, ReceiveBudget
from app.http.fast_path import HEADER, LazyHeaders
from app.http.head import HEAD_MAX_BYTES, find_end, has_line_break, repair, skip_empty_lines
from app.http.responses import GatewayErrors, Unanswered, response_bytes
from app.ingest import Request as GatewayRequest

BODY_MAX_BYTES = 2 * 1024 * 1024
HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
# For the rest of a body after the answer: it is read only so that the answer arrives.
REST_TIMEOUT_S = 5.0

_HEADERS = re.compile(rb"(?:\r\n%b)*+" % HEADER)
# Sanic strips all that Python counts as white space; to a proxy such a value is invalid.
_ODD_LENGTH = re.compile(rb"\r\n(?i:content-length|transfer-encoding):[ \t]*+[^!-~\r]")
_NUMBERS = {10: re.compile("[0-9]+"), 16: re.compile("[0-9A-Fa-f]+")}


class LastAnswer(Exception):
    """The connection has had its last answer."""


class GatewayHttp(Http):
    """The requests of one connection, in sequence: Sanic's class, with stricter parsing."""

    HEADER_MAX_SIZE = HEAD_MAX_BYTES
    protocol: "GatewayProtocol"

    async def http1_request_header(self) -> None:
        """Receive the head of the next request for Sanic, and answer plain callbacks until then.

        Raises Unreadable for an invalid or late head, and LastAnswer.
        """
        try:
            query = repair(self.recv_buffer, await self._answer_callbacks())
        except (asyncio.CancelledError, LastAnswer):
            # Sanic then reads the request, and would log that there is none.
            self.create_empty_request()
            if self.stage is Stage.IDLE:
                self.response_func = None  # type: ignore[assignment] # a reference cycle
            raise
        await Http.http1_request_header(self)  # type: ignore[no-untyped-call]
        self.request.raw_url += query
        self._check_head()
        if has_line_break(query):  # a proxy may parse the rest as another request, or as a body
            self.keep_alive = False

    async def _answer_callbacks(self) -> int:
        """Answer plain callbacks, and return the end of the first other head."""
        buffer, protocol = self.recv_buffer, self.protocol
        gateway, proxies = protocol.gateway, protocol.gateway.settings.proxies_count
        while True:
            # The pattern is applied once, to a complete head.
            end = 0 if buffer.endswith(b"\r\n\r\n") else await self._receive_head()
            if (plain := fast_path.take(buffer)) is None:
                return end or await self._receive_head()
            headers = LazyHeaders(plain.lines)
            address = protocol.address
            if proxies:
                address = counted_address(headers.get_all("x-forwarded-for"), proxies)
            self.stage = Stage.HANDLER
            answer: bytes | Answer | None
            try:
                read = plain.read_body if plain.body else None
                answer = await gateway.handle(
                    GatewayRequest(plain.vendor, plain.query, address, headers, read, plain.method)
                )
            except Exception as error:  # noqa: BLE001 - turned into an answer, like any other
                answer = protocol.errors.answer(error)
            if answer is None:
                self.stage = Stage.IDLE
                raise LastAnswer
            self.keep_alive = not gateway.is_draining
            await self._send(response_bytes(answer, self.keep_alive))
            self.stage = Stage.IDLE
            if not self.keep_alive:
                raise LastAnswer
            # Up to 64 KB each, for as long as the connection is idle.
            del plain, headers, answer
            # Pipelined requests let other connections go first.
            await (asyncio.sleep(0) if buffer else self._receive_more())
            self.stage = Stage.REQUEST

    async def _receive_head(self) -> int:
        """Receive a complete head, and return its end."""
        skip_empty_lines(self.recv_buffer)
        if (end := find_end(self.recv_buffer, 0)) != -1:
            return end
        try:
            async with asyncio.timeout(HEAD_TIMEOUT_S):
                while end == -1:
                    searched = max(0, len(self.recv_buffer) - len(b"\r\n\r"))
                    await self._receive_more()
                    is_moved = skip_empty_lines(self.recv_buffer)
                    end = find_end(self.recv_buffer, 0 if is_moved else searched)
        except TimeoutError:
            raise Unreadable("head_too_slow") from None
        return end

    def _check_head(self) -> None:
        """Raise Unreadable for a head that allows request smuggling."""
        head = self.request.head
        has_headers = (end_of_line := head.find(b"\r\n")) != -1
        is_odd = has_headers and not _HEADERS.fullmatch(head, end_of_line)
        if self.request_body:
            is_odd = is_odd or _ODD_LENGTH.search(head, end_of_line) is not None
        if is_odd or (self._is_chunked and self.request.version == "1.0"):
            raise Unreadable("not_http")
        self.upgrade_websocket = False  # Sanic sets no time limit for one

    @property
    def _is_chunked(self) -> bool:
        body: object = self.request_body  # Sanic declares bytes, and stores strings
        return body == "chunked"

    @staticmethod
    def _safe_int(value: str, base: int = 10) -> int:
        """Return the size of a body or chunk; `int` would also accept `0x5` and `+5`."""
        value = value.strip(" \t")
        if not _NUMBERS[base].fullmatch(value):
            raise ValueError
        return int(value, base)

    async def read(self) -> bytes | None:
        """Return some bytes of the body."""
        if self._is_chunked and self.request_bytes_left == 0:
            # Sanic skips this line break unchecked.
            while len(self.recv_buffer) < len(b"\r\n"):
                await self._receive_more()
            if not self.recv_buffer.startswith(b"\r\n"):
                self.keep_alive = False
                raise BadRequest
        return await Http.read(self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body within a time limit, which is shorter after the answer."""
        is_answered = self.stage is not Stage.HANDLER
        deadline = self.protocol.loop.time() + (REST_TIMEOUT_S if is_answered else BODY_TIMEOUT_S)
        while self.request_body:
            try:
                async with asyncio.timeout_at(deadline):
                    data = await self.read()
                    if self.recv_buffer:  # many small chunks
                        await asyncio.sleep(0)
            except TimeoutError:
                self.keep_alive = False
                # BadRequest makes Sanic close the connection, which has its answer.
                raise (BadRequest() if is_answered else Unreadable("body_too_slow")) from None
            if data:
                yield data

    def create_empty_request(self) -> None:
        """Create the stand-in for an unreadable request, without its URL."""
        # Sanic would parse a wrong URL once more, fail again, and log it with its secret.
        self.url = None
        Http.create_empty_request(self)

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Send a response, or close the connection instead."""
        if isinstance(self.response, Unanswered):
            self.keep_alive = False
            self.request_body = None
            self.response_func = None  # type: ignore[assignment] # Sanic's mark of a sent response
            self.stage = Stage.IDLE
            return
        if self.protocol.gateway.is_draining:
            self.keep_alive = False
        await Http.http1_response_header(self, data, end_stream)
        if self.recv_buffer:  # pipelined requests let other connections go first
            await asyncio.sleep(0)


class GatewayProtocol(Connection):
    """A connection to the gateway."""

    __slots__ = ("_buffer_max", "_more", "errors", "gateway")
    HTTP_CLASS = GatewayHttp

    def __init__(
        self,
        *,
        gateway: Gateway,
        errors: GatewayErrors,
        budget: ReceiveBudget,
        loop: asyncio.AbstractEventLoop,
        app: Sanic[Config, SimpleNamespace],
        connections: set[Connection],
        **_: object,
    ) -> None:
        super().__init__(budget=budget, loop=loop, app=app, connections=connections)
        self.gateway = gateway
        self.errors = errors
        self._buffer_max: int = self.app.config.REQUEST_BUFFER_SIZE
        self._more: asyncio.Future[None] | None = None

    def data_received(self, data: bytes) -> None:
        """Buffer received bytes, and wake the waiter for them."""
        self._time = monotonic()
        self.recv_buffer += data
        if len(self.recv_buffer) >= self._buffer_max and self.transport is not None:
            self.transport.pause_reading()
        if self._more is not None and not self._more.done():
            self._more.set_result(None)
        self._budget.received += len(data)
        if self._budget.received >= self._budget.add_up_bytes:
            self._budget.enforce(self.connections)

    async def receive_more(self) -> None:
        """Wait for more bytes, by a future, which is cheaper than Sanic's event."""
        if self.transport is not None:
            self.transport.resume_reading()
        self._more = self.loop.create_future()
        await self._more

    async def send(self, data: bytes) -> None:
        """Send bytes once the transport takes more; raises RequestCancelled if it is closed."""
        if not self._can_write.is_set():
            await self._can_write.wait()
        if self.transport is None or self.transport.is_closing():
            raise RequestCancelled
        self.transport.write(data)
        self._time = monotonic()


async def read_body(request: Request) -> bytes:
    """Return the body of a POST; raises Unreadable if it does not arrive in time.

    Raises MalformedBody if it is compressed: no vendor compresses, and a callback with unparsable
    parameters would be dropped.
    """
    if request.stream is None or not request.stream.request_body:
        return b""
    await request.receive_body()  # type: ignore[no-untyped-call]
    # Up to megabytes: no second copy while the callback waits.
    body, request.body = request.body, b""
    # The body of a GET has no meaning, but is read: the next request follows it.
    if not body or request.method != "POST":
        return b""
    encodings = ",".join(request.headers.getall("content-encoding", [])).lower().split(",")
    if {encoding.strip(" \t") for encoding in encodings} - {"", "identity"}:
        # Without the body: a secret, or a parameter that the app omits, could not be found in it.
        raise MalformedBody
    return body
