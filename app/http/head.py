"""The head of a request as bytes, before the HTTP server takes it apart: mended, or refused."""

import re

from sanic.exceptions import NotFound

from app.errors import Unreadable
from app.parameters import escape

# The server compares where a head ends with it: one of 65,534 bytes is served.
HEAD_MAX_BYTES = 65_535
# A vendor sends a dozen and proxies add some. Each costs the server a microsecond, and 64 KB have
# room for 16,000.
HEADER_LINES_MAX = 200
# No path that is served comes near it, and what is not ASCII in one takes three times its length.
PATH_MAX_BYTES = 1_024

_METHOD = re.compile(rb"[\w!#$%&'*+.^`|~-]+")
# RFC 9112, 3.2.2: a server must take an absolute target. Of the leading slashes one is meant.
_TARGET = re.compile(
    rb"(?:[a-z][a-z0-9+.-]*://[\w.~!$&'()*+,;=:@%\[\]-]++(?=[/#]|\Z)|(?=/))/*+(.*)",
    re.IGNORECASE | re.DOTALL,
)
# RFC 9112, 7: names of transfer codings are case-insensitive. Nothing but blanks may stand round
# it: an encoding that two servers read in two ways smuggles requests.
_CHUNKED = re.compile(rb"\r\n(?i:transfer-encoding):[ \t]*+((?i:chunked)[ \t]*+)(?=\r\n)")


def find_end(buffer: bytearray, start: int) -> int:
    """Return where the head ends, or -1; what comes before `start` has been searched already.

    Raises Unreadable where the head is larger than it may be.
    """
    end = buffer.find(b"\r\n\r\n", start)
    if (end if end != -1 else len(buffer) - len(b"\r\n\r")) >= HEAD_MAX_BYTES:
        raise Unreadable("too_large")
    return end


def skip_empty_lines(buffer: bytearray) -> bool:
    """Delete empty lines ahead of a head (RFC 9112, 2.2); returns whether there were any."""
    if not buffer.startswith(b"\r\n"):
        return False
    del buffer[: len(buffer) - len(buffer.lstrip(b"\r\n"))]
    return True


def has_break(text: bytes) -> bool:
    """Whether there is what some servers take for the end of a line, and others do not."""
    return b"\n" in text or b"\r" in text


def mend(buffer: bytearray, end: int) -> bytes:
    """Give the head that ends at `end` the form that Sanic reads, and return its query.

    The query is taken out: Sanic would parse it, which nobody needs, take no byte that is not
    ASCII, and count in 16 bits. Raises Unreadable, and NotFound for a path that is served nowhere.
    """
    if buffer.count(b"\r\n", 0, end) > HEADER_LINES_MAX:
        raise Unreadable("too_large")
    if chunked := _CHUNKED.search(buffer, 0, end + len(b"\r\n")):
        buffer[chunked.start(1) : chunked.end(1)] = b"chunked"
    line_bytes = buffer.find(b"\r\n", 0, end + len(b"\r\n"))
    method, _, rest = bytes(buffer[:line_bytes]).partition(b" ")
    target, _, version = rest.rpartition(b" ")
    if not _METHOD.fullmatch(method):
        raise Unreadable("not_http")
    path, mark, query = target.partition(b"?")
    if has_break(path):
        raise Unreadable("not_http")
    match = _TARGET.fullmatch(path)
    if not match:
        return b""  # not HTTP, or `*`: Sanic's to judge
    if len(match[1]) > PATH_MAX_BYTES:
        raise NotFound
    buffer[:line_bytes] = b" ".join((method, b"/" + escape(match[1]), version))
    return mark + query
