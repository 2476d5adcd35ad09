"""The bodies of verified requests, without their credential."""

from collections.abc import Mapping, Sequence

from app.apart import Apart
from app.errors import MalformedBody
from app.parameters import AT_ONCE_BYTES, Body, read_body
from app.redaction import redact_body

# Limit on large bodies that wait for the thread: the connections' budget counts them no longer.
WAITING_MAX_BYTES = 64 * 1024 * 1024


class Bodies:
    """Reads bodies: small ones at once, large ones in a thread, within a limit on their bytes."""

    def __init__(self) -> None:
        self.apart = Apart("large-bodies", WAITING_MAX_BYTES)

    async def read(
        self, headers: Mapping[str, str], body: bytes, accepted: Sequence[bytes] = ()
    ) -> Body:
        """Return a readable body, without members that hold the last of the accepted credentials.

        Raises MalformedBody, TooManyParameters and Unavailable.
        """
        content_type, secret = headers.get("content-type", ""), accepted[-1] if accepted else b""
        if len(body) <= AT_ONCE_BYTES:
            readable = _read(content_type, body, secret)
        else:
            readable = await self.apart.run(len(body), _read, content_type, body, secret)
        if readable is None:
            raise MalformedBody
        return readable


def _read(content_type: str, body: bytes, secret: bytes) -> Body | None:
    readable = read_body(content_type, body)
    if readable is None or not readable.json or not _may_hold(secret, readable.json):
        return readable
    text = secret.decode(errors="replace")
    redacted = redact_body("application/json", readable.json, (), (text,))
    # The adapter decodes it: a secret in a nested value counts too.
    return readable if redacted == readable.json else read_body(content_type, redacted or b"{}")


def _may_hold(secret: bytes, json: bytes) -> bool:
    """Whether JSON may hold a secret, as it is or escaped: a cheap test that is rarely true."""
    if not secret:
        return False
    is_escaped = b"\\u" in json or b"\\/" in json or b'"' in secret or b"\\" in secret
    return secret in json or is_escaped
