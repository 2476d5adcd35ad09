"""The edge: HTTP as vendors really send it, and connections that are closed without an answer.

Sanic answers a request that is too large, too slow or not quite HTTP with a 4xx of its own. For
a vendor that is final, so the callback would be lost. Here such a request is mended where that
is safe, and else its connection is closed: the vendor tries again.
"""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from sanic import Request
from sanic.exceptions import BadRequest
from sanic.handlers import ErrorHandler
from sanic.http import Http, Stage
from sanic.response import HTTPResponse

from app.errors import Answer, GatewayError, MalformedBody, Rejected, Unreadable, render
from app.http.connection_limits import Connection
from app.http.fast_path import HEADER, USUAL, UsualCallback, bytes_of
from app.http.head import HEAD_MAX_BYTES, find_end, has_break, mend, skip_empty_lines
from app.telemetry.metrics import REJECTED, UNANSWERED, UNEXPECTED

BODY_MAX_BYTES = 2 * 1024 * 1024
HEAD_TIMEOUT_S = 10.0
BODY_TIMEOUT_S = 30.0
# The rest of a body whose request is answered already: read only so that the answer arrives.
REST_TIMEOUT_S = 5.0
# A defect that hits every request must not fill the disk with its log lines.
UNEXPECTED_LOG_S = 1.0

log = logging.getLogger(__name__)


_HEADERS = re.compile(rb"(?:\r\n%b)*+" % HEADER)
# Sanic strips all that Python takes for blanks: to others such a value means nothing.
_ODD_LENGTH = re.compile(rb"\r\n(?i:content-length|transfer-encoding):[ \t]*+[^!-~\r]")
_NUMBERS = {10: re.compile("[0-9]+"), 16: re.compile("[0-9A-Fa-f]+")}


class Unanswered(HTTPResponse):
    """In place of a response: close the connection."""


class GatewayHttp(Http):
    """One connection. Sanic's own class, but for what it does at the edges of HTTP."""

    HEADER_MAX_SIZE = HEAD_MAX_BYTES

    async def http1_request_header(self) -> None:
        """Receive the head of a request; raises Unreadable where there is none to be had."""
        # The pattern looks at a head once, when all of it has come.
        end = 0 if self.recv_buffer.endswith(b"\r\n\r\n") else await self._receive_head()
        usual = USUAL.match(self.recv_buffer)
        if usual and usual.end() <= HEAD_MAX_BYTES:
            self.keep_alive, self.request = True, UsualCallback(usual, self)
            del self.recv_buffer[: usual.end()]
            return
        query = mend(self.recv_buffer, end or await self._receive_head())
        await Http.http1_request_header(self)  # type: ignore[no-untyped-call]
        self.request.raw_url += query
        self._check_head()
        if has_break(query):  # to somebody else the rest may be another request, or a body
            self.keep_alive = False

    async def _receive_head(self) -> int:
        """Return where the head ends, once all of it has come."""
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
        except asyncio.CancelledError:
            # Closed by ourselves: Sanic looks at the request then, and logs that there is none.
            self.create_empty_request()
            raise
        return end

    async def send_answer(self, answer: Answer) -> None:
        """Answer a usual callback."""
        if self.protocol.app.ctx.draining:
            self.keep_alive = False
        await self._send(bytes_of(answer, self.keep_alive))
        self.response_func = None  # type: ignore[assignment] # Sanic's own "sent"
        self.stage = Stage.IDLE
        if self.recv_buffer:  # more requests that came along: it is the others' turn
            await asyncio.sleep(0)

    def _check_head(self) -> None:
        """Raise Unreadable where somebody else may see the end of the request elsewhere."""
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
        body: object = self.request_body  # Sanic declares bytes, and keeps words in it
        return body == "chunked"

    @staticmethod
    def _safe_int(value: str, base: int = 10) -> int:
        """Return the size of a body or chunk; Python would take `0x5` and `+5` too."""
        value = value.strip(" \t")
        if not _NUMBERS[base].fullmatch(value):
            raise ValueError
        return int(value, base)

    async def read(self) -> bytes | None:
        """Return some bytes of the body."""
        if self._is_chunked and self.request_bytes_left == 0:
            # Sanic skips these two without a look.
            while len(self.recv_buffer) < len(b"\r\n"):
                await self._receive_more()
            if not self.recv_buffer.startswith(b"\r\n"):
                self.keep_alive = False
                raise BadRequest
        return await Http.read(self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body, in time: to the handler, or, once that has answered, to nobody."""
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
                # Sanic's own word for "close", where there is nothing left to answer.
                raise (BadRequest() if is_answered else Unreadable("body_too_slow")) from None
            if data:
                yield data

    def create_empty_request(self) -> None:
        """Stand in for a request that could not be read, without its URL."""
        # Sanic would parse a wrong URL once more, fail again, and log it, secret and all.
        self.url = None
        Http.create_empty_request(self)

    async def http1_response_header(self, data: bytes, end_stream: bool) -> None:
        """Send a response, or close the connection in its place."""
        if isinstance(self.response, Unanswered):
            self.keep_alive = False
            self.request_body = None
            self.response_func = None  # type: ignore[assignment] # Sanic's own "sent"
            self.stage = Stage.IDLE
            return
        if self.protocol.app.ctx.draining:
            self.keep_alive = False
        await Http.http1_response_header(self, data, end_stream)
        if self.recv_buffer:  # more requests that came along: it is the others' turn
            await asyncio.sleep(0)


class GatewayProtocol(Connection):
    """Our connections, over `GatewayHttp`."""

    HTTP_CLASS = GatewayHttp

    def _setup(self) -> None:
        super()._setup()  # type: ignore[no-untyped-call]
        self.request_handler = self._handle

    async def _handle(self, request: Request) -> None:
        """Handle a request as Sanic does, but a usual callback without looking for its route."""
        if not isinstance(request, UsualCallback):
            await self.app.handle_request(request)
            return
        errors: Any = self.app.error_handler  # GatewayErrors
        try:
            answer = Answer(200, await self.app.ctx.receipt(request, request.vendor))
        except Exception as error:  # noqa: BLE001 - turned into an answer, like every other
            # Where one is refused many are, and Sanic's way would take 35 µs more for each.
            answer = errors.answer(error)
        await request.stream.send_answer(answer)


class GatewayErrors(ErrorHandler):
    """Turns every exception into what `errors.render` says, and counts what is no callback."""

    def __init__(self) -> None:
        super().__init__()
        self._next_log = 0.0

    def response(self, _: Request, exception: BaseException) -> HTTPResponse:
        """Return the answer to an exception."""
        if isinstance(exception, asyncio.CancelledError):
            return Unanswered()  # the caller is gone
        answer = self.answer(exception)
        if answer is None:
            return Unanswered()
        return HTTPResponse(answer.body, answer.status, dict(answer.headers), "application/json")

    def answer(self, exception: BaseException) -> Answer | None:
        """Return the answer, and count it; None where there is none, as never from a handler."""
        answer = render(exception)
        if answer is None:
            UNANSWERED.labels(_reason(exception)).inc()
        elif isinstance(exception, Rejected):
            REJECTED.labels(exception.reason).inc()
        elif not isinstance(exception, GatewayError):
            self._note(exception, answer.status)
        return answer

    def _note(self, exception: BaseException, status: int) -> None:
        """Count what the HTTP server itself refuses, and log what nobody expected."""
        if status in _SERVER_REASONS:
            REJECTED.labels(_SERVER_REASONS[status]).inc()
            return
        UNEXPECTED.inc()
        if time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + UNEXPECTED_LOG_S
            log.error("unexpected error", exc_info=exception)


_SERVER_REASONS = {404: "unknown_path", 405: "method_not_allowed", 503: "response_timeout"}
_UNREADABLE_REASONS = {408: "head_too_slow", 413: "too_large", 414: "too_large"}


def _reason(exception: BaseException) -> str:
    if isinstance(exception, Unreadable):
        return exception.reason
    return _UNREADABLE_REASONS.get(getattr(exception, "status_code", 400), "not_http")


async def read_body(request: Request) -> bytes:
    """Return the body of a POST; raises Unreadable where it does not come.

    Raises MalformedBody where it is compressed: no vendor does that, and a form whose bytes mean
    something else would be dropped.
    """
    if request.stream is None or not request.stream.request_body:
        return b""
    await request.receive_body()  # type: ignore[no-untyped-call]
    # Up to megabytes, of which nobody needs a second copy while the callback waits.
    body, request.body = request.body, b""
    # That of a GET means nothing, but it is there, before the next request.
    if not body or request.method != "POST":
        return b""
    encodings = ",".join(request.headers.getall("content-encoding", [])).lower().split(",")
    if {encoding.strip(" \t") for encoding in encodings} - {"", "identity"}:
        raise MalformedBody("malformed_body")
    return body
