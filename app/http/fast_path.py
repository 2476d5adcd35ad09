"""The fast path: a callback that is a plain GET or POST skips Sanic's parser, router and response.

A pattern recognises either. Any other request goes through Sanic to the same `Gateway.handle`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from app.http.head import HEAD_MAX_BYTES, HEADER_LINES_MAX

# Names are tokens, values hold no control characters (RFC 9110, 5.1 and 5.5). Sanic accepts more,
# which a proxy may parse differently: request smuggling.
HEADER = rb"[\w!#$%&'*+.^`|~-]++:[^\x00-\x08\x0a-\x1f\x7f]*+"
# Headers that concern the body or the connection: left to Sanic.
_SPECIAL = (
    rb"(?i:content-length|content-encoding|transfer-encoding|expect|upgrade"
    rb"|connection:(?! keep-alive\r))"
)
# Groups: vendor, query, headers.
CALLBACK = re.compile(
    rb"GET /ingest/([\w-]+)/?\?([!-~]*+) HTTP/1\.1((?:\r\n(?!%b)%b){0,%d}+)\r\n\r\n"
    % (_SPECIAL, HEADER, HEADER_LINES_MAX)
)
# The same with the length of a small body, between groups 3 and 5. A larger one is Sanic's.
_LINES = rb"((?:\r\n(?!%b)%b){0,%d}+)" % (_SPECIAL, HEADER, HEADER_LINES_MAX // 2 - 1)
POSTED = re.compile(
    rb"POST /ingest/([\w-]+)/?\?([!-~]*+) HTTP/1\.1%b"
    rb"\r\n(?i:content-length): ?([0-9]{1,4}|1[0-5][0-9]{3})%b\r\n\r\n" % (_LINES, _LINES)
)


class PlainCallback(NamedTuple):
    """A request of the fast path."""

    vendor: str
    query: bytes
    lines: bytes
    body: list[bytes]  # empty for a GET
    method: str

    async def read_body(self) -> bytes:
        """Return the body, once: it is not held while the event waits."""
        return self.body.pop() if self.body else b""


def take(buffer: bytearray) -> PlainCallback | None:
    """Take a plain callback from the front of a buffer.

    Returns None for any other request, and for one whose body has not arrived.
    """
    if found := CALLBACK.match(buffer):
        vendor, query, lines = found.groups()
        body, method, end = [], "GET", found.end()
    elif found := POSTED.match(buffer):
        vendor, query, before, length, after = found.groups()
        end = found.end() + int(length)
        lines, body, method = before + after, [bytes(buffer[found.end() : end])], "POST"
    if found is None or found.end() > HEAD_MAX_BYTES or len(buffer) < end:
        return None
    del buffer[:end]
    return PlainCallback(vendor.decode(), query, lines, body, method)


class LazyHeaders(Mapping[str, str]):
    """Headers by their names in any case, as Sanic's; parsed when the first one is looked up.

    Of a repeated header the first value counts.
    """

    __slots__ = ("_lines", "_values")

    def __init__(self, lines: bytes) -> None:
        self._lines = lines
        self._values: dict[str, str] | None = None

    def __getitem__(self, name: str) -> str:
        return self._parsed()[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parsed())

    def __len__(self) -> int:
        return len(self._parsed())

    def get_all(self, name: str) -> Sequence[str]:
        """Return every value of a header, in order."""
        return [value for key, value in self._pairs() if key == name]

    def _parsed(self) -> dict[str, str]:
        if self._values is None:
            self._values = dict(reversed(list(self._pairs())))
        return self._values

    def _pairs(self) -> Iterator[tuple[str, str]]:
        lines = self._lines.decode(errors="surrogateescape").split("\r\n")[1:]
        for name, _, value in (line.partition(":") for line in lines):
            yield name.lower(), value.lstrip()
