"""Responses: the bytes of a receipt or an error, and the mapping of exceptions to them."""

import asyncio
import logging
import time
from functools import lru_cache
from http import HTTPStatus

from sanic import Request
from sanic.exceptions import MethodNotAllowed, NotFound, SanicException
from sanic.handlers import ErrorHandler
from sanic.response import HTTPResponse

from app.access import counted_address
from app.errors import Answer, GatewayError, Rejected, Unreadable, error_answer
from app.gateway import Gateway
from app.telemetry.metrics import REJECTED, UNANSWERED, UNEXPECTED

JSON = "application/json"
# A defect that hits every request must not fill the disk with its log lines.
UNEXPECTED_LOG_S = 1.0

# Sanic's own refusals: reasons of those that are answered, and of those that close the connection.
_REFUSALS = {
    HTTPStatus.NOT_FOUND: "unknown_path",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed",
    HTTPStatus.SERVICE_UNAVAILABLE: "response_timeout",
}
_UNANSWERED = {
    HTTPStatus.REQUEST_TIMEOUT: "head_too_slow",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "too_large",
    HTTPStatus.REQUEST_URI_TOO_LONG: "too_large",
}

log = logging.getLogger(__name__)


@lru_cache(maxsize=32)
def response_bytes(answer: bytes | Answer, keep_alive: bool) -> bytes:
    """Return the response to a receipt or another answer.

    These are the bytes that Sanic would send, except for its empty `alt-svc`.
    """
    if isinstance(answer, bytes):
        answer = Answer(200, answer)
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        *(f"{name}: {value}" for name, value in answer.headers),
        f"content-length: {len(answer.body)}",
        f"connection: {'keep-alive' if keep_alive else 'close'}",
        f"content-type: {JSON}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body


def caller_address(request: Request, proxies: int) -> str:
    """Return the address of the caller, as the counted number of proxies reports it."""
    if proxies:
        # Not `remote_addr`, which leaves empty entries out of the count.
        return counted_address(request.headers.getall("x-forwarded-for", []), proxies)
    return str(request.ip)


def reason_of(exception: BaseException) -> str:
    """Return the reason of an answer without a receipt, or of a connection closed without one."""
    if isinstance(exception, GatewayError):
        return exception.reason
    if isinstance(exception, SanicException):
        status = HTTPStatus(exception.status_code)
        return _REFUSALS.get(status) or _UNANSWERED.get(status, "not_http")
    return "unexpected"


class Unanswered(HTTPResponse):
    """In place of a response: the connection is closed."""


class GatewayErrors(ErrorHandler):
    """Turns every exception into an answer, and counts those without a verified callback."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway
        self._next_log = 0.0

    def response(self, request: Request, exception: BaseException) -> HTTPResponse:
        """Return the response to an exception."""
        if isinstance(exception, asyncio.CancelledError):
            return Unanswered()  # the caller is gone
        if isinstance(exception, NotFound | MethodNotAllowed):
            proxies = self._gateway.settings.proxies_count
            self._gateway.drops.reject(reason_of(exception), caller_address(request, proxies))
        answer = self.answer(exception)
        if answer is None:
            return Unanswered()
        return HTTPResponse(answer.body, answer.status, dict(answer.headers), JSON)

    def answer(self, exception: BaseException) -> Answer | None:
        """Return the answer, and count it; None closes the connection without one."""
        reason = reason_of(exception)
        if isinstance(exception, Unreadable):
            UNANSWERED.labels(reason).inc()
            return None
        if isinstance(exception, GatewayError):
            if isinstance(exception, Rejected):
                REJECTED.labels(reason).inc()
            return error_answer(exception.status, exception.message)
        if isinstance(exception, SanicException):
            status = HTTPStatus(exception.status_code)
            if status in _REFUSALS:
                REJECTED.labels(reason).inc()
                return error_answer(status, status.phrase, tuple(exception.headers.items()))
            if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
                UNANSWERED.labels(reason).inc()
                return None
        return self._unexpected(exception)

    def _unexpected(self, exception: BaseException) -> Answer:
        UNEXPECTED.inc()
        if time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + UNEXPECTED_LOG_S
            log.error("unexpected error", exc_info=exception)
        return error_answer(GatewayError.status, GatewayError.message)
