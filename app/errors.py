"""Every error that a caller can see, with its HTTP status.

A 4xx is final: the vendor never sends the callback again. So there are just four: an unverified
callback, an unknown vendor or path, an unreadable body, and a method that is not served. Any other
failure is a 5xx, or a connection closed without an answer: the vendor retries after both.
"""

from http import HTTPStatus
from typing import ClassVar

import msgspec

RETRY_AFTER_S = 1


class GatewayError(Exception):
    """An answer other than a receipt. `reason` is the label of the metric that counts it."""

    status: ClassVar[int] = 500
    message = "Internal Server Error"

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Rejected(GatewayError):
    """The request never became a callback: it is counted without vendor and workspace."""


class Unverified(Rejected):
    """The secret is wrong or missing, or the address is not allowed."""

    status = 401
    message = "Unverified callback."


class UnknownVendor(Rejected):
    """No adapter has this name."""

    status = 404

    def __init__(self, vendor: str) -> None:
        super().__init__("unknown_vendor")
        self.message = f"Unknown vendor: {vendor}"


class Malformed(GatewayError):
    """A verified callback that cannot be read: kept in quarantine, and counted as dropped."""

    status = 400
    message = "Malformed body."


class MalformedBody(Malformed):
    """The body is neither a form nor a JSON object."""

    def __init__(self) -> None:
        super().__init__("malformed_body")


class TooManyParameters(Malformed):
    """More parameters than any vendor sends."""

    message = "Too many parameters."

    def __init__(self) -> None:
        super().__init__("too_many_parameters")


class NotConfigured(Rejected):
    """No secret is configured for the vendor: every callback is refused until one is."""

    status = 503
    message = "Service Unavailable"


class Unavailable(GatewayError):
    """A temporary refusal: the buffer is full or closed, a clock is wrong, or the cell is."""

    status = 503
    message = "Service Unavailable"


class WriteFailed(GatewayError):
    """The event may or may not be stored; the vendor's retry decides."""


class QuarantineBusy(GatewayError):
    """Too many drops wait for quarantine; no attempt was made to keep this one."""

    status = 503
    message = "Service Unavailable"


class QuarantineFailed(GatewayError):
    """A drop may or may not be in quarantine; the vendor's retry decides."""


class Unreadable(GatewayError):
    """No complete HTTP request: too large, too slow or malformed. Closed without an answer."""


class Answer(msgspec.Struct, frozen=True):
    """An HTTP answer: status, JSON body, and headers besides those of every answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


def error_answer(status: int, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Answer:
    """Return the answer to an error; a 503 has a Retry-After header."""
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers += (("Retry-After", str(RETRY_AFTER_S)),)
    return Answer(status, msgspec.json.encode({"error": message}), headers)
