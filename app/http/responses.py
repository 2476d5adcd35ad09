"""Responses: the bytes of a receipt or an error, and every exception as one of them."""

import asyncio
import logging
import time
from functools import lru_cache
from http import HTTPStatus

from sanic import Request
from sanic.exceptions import SanicException
from sanic.handlers import ErrorHandler
from sanic.response import HTTPResponse

from app.errors import Answer, GatewayError, Rejected, Unreadable, render
from app.telemetry.metrics import REJECTED, UNANSWERED, UNEXPECTED

JSON = "application/json"
# A defect that hits every request must not fill the disk with its log lines.
UNEXPECTED_LOG_S = 1.0

_SERVER_REASONS = {404: "unknown_path", 405: "method_not_allowed", 503: "response_timeout"}
_UNREADABLE_REASONS = {408: "head_too_slow", 413: "too_large", 414: "too_large"}

log = logging.getLogger(__name__)


@lru_cache(maxsize=16)
def receipt_bytes(receipt: bytes, keep_alive: bool) -> bytes:
    """Return the whole response of a receipt."""
    return answer_bytes(Answer(200, receipt), keep_alive)


@lru_cache(maxsize=16)
def answer_bytes(answer: Answer, keep_alive: bool) -> bytes:
    """Return the bytes that Sanic would send, except for its empty `alt-svc`."""
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        *(f"{name}: {value}" for name, value in answer.headers),
        f"content-length: {len(answer.body)}",
        f"connection: {'keep-alive' if keep_alive else 'close'}",
        f"content-type: {JSON}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body


class Unanswered(HTTPResponse):
    """In place of a response: close the connection."""


class GatewayErrors(ErrorHandler):
    """Turns every exception into an answer, and counts those that are not about a callback."""

    def __init__(self) -> None:
        super().__init__()
        self._next_log = 0.0

    def response(self, _: Request, exception: BaseException) -> HTTPResponse:
        """Return the response to an exception."""
        if isinstance(exception, asyncio.CancelledError):
            return Unanswered()  # the caller is gone
        answer = self.answer(exception)
        if answer is None:
            return Unanswered()
        return HTTPResponse(answer.body, answer.status, dict(answer.headers), JSON)

    def answer(self, exception: BaseException) -> Answer | None:
        """Return the answer, and count it; None closes the connection without one."""
        answer = render(exception)
        if answer is None:
            UNANSWERED.labels(_reason(exception)).inc()
        elif isinstance(exception, Rejected):
            REJECTED.labels(exception.reason).inc()
        elif not isinstance(exception, GatewayError):
            self._note(exception, answer.status)
        return answer

    def _note(self, exception: BaseException, status: int) -> None:
        """Count a refusal of the HTTP server itself, and log an unexpected error."""
        if status in _SERVER_REASONS:
            REJECTED.labels(_SERVER_REASONS[status]).inc()
            return
        UNEXPECTED.inc()
        if time.monotonic() >= self._next_log:
            self._next_log = time.monotonic() + UNEXPECTED_LOG_S
            log.error("unexpected error", exc_info=exception)


def _reason(exception: BaseException) -> str:
    if isinstance(exception, Unreadable):
        return exception.reason
    status = exception.status_code if isinstance(exception, SanicException) else 400
    return _UNREADABLE_REASONS.get(status, "not_http")
