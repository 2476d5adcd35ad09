"""The bodies of verified requests, without their credential."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from app.errors import MalformedBody, Unavailable
from app.parameters import AT_ONCE_BYTES, Body, read_body
from app.redaction import redact_body

# Limit on large bodies that wait for the thread: the connections' budget counts them no longer.
WAITING_MAX_BYTES = 64 * 1024 * 1024


class Bodies:
    """Reads bodies: small ones at once, large ones in a thread, within a limit on their bytes."""

    def __init__(self) -> None:
        # One thread: several would compete with the event loop for the interpreter's lock.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._waiting_bytes = 0

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
            readable = await self._read_large(content_type, body, secret)
        if readable is None:
            raise MalformedBody
        return readable

    async def _read_large(self, content_type: str, body: bytes, secret: bytes) -> Body | None:
        if self._waiting_bytes + len(body) > WAITING_MAX_BYTES:
            raise Unavailable("buffer_full")
        self._waiting_bytes += (size_bytes := len(body))

        def release(_: object) -> None:
            self._waiting_bytes -= size_bytes

        reading = asyncio.get_running_loop().run_in_executor(
            self._thread, _read, content_type, body, secret
        )
        reading.add_done_callback(release)
        # Shielded: the queued body stays in memory, and is counted, even if the caller hangs up.
        return await asyncio.shield(reading)


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
