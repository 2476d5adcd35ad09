"""The head of a request as bytes, before Sanic parses it: repaired, or refused."""

import re

from sanic.exceptions import NotFound

from app.errors import Unreadable
from app.parameters import escape

# Compared with the offset of the head's end: a head of 65,534 bytes is served.
HEAD_MAX_BYTES = 65_535
# A vendor sends a dozen and proxies add some; a head has room for 16,000, and each costs CPU time.
HEADER_LINES_MAX = 200
# Far longer than any path that is served; percent-encoding triples bytes that are not ASCII.
PATH_MAX_BYTES = 1_024

_METHOD = re.compile(rb"[\w!#$%&'*+.^`|~-]+")
# RFC 9112, 3.2.2: a server must accept an absolute target. Leading slashes count as one.
_TARGET = re.compile(
    rb"(?:[a-z][a-z0-9+.-]*://[\w.~!$&'()*+,;=:@%\[\]-]++(?=[/#]|\Z)|(?=/))/*+(.*)",
    re.IGNORECASE | re.DOTALL,
)
# RFC 9112, 7: names of transfer codings are case-insensitive. Only blanks may surround the name: a
# coding that two servers parse differently allows request smuggling.
_CHUNKED = re.compile(rb"\r\n(?i:transfer-encoding):[ \t]*+((?i:chunked)[ \t]*+)(?=\r\n)")


def find_end(buffer: bytearray, start: int) -> int:
    """Return the end of the head, or -1; the bytes before `start` have been searched already.

    Raises Unreadable if the head is too large.
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


def has_line_break(text: bytes) -> bool:
    """Whether a text has a CR or LF, which only some servers take for the end of a line."""
    return b"\n" in text or b"\r" in text


def repair(buffer: bytearray, end: int) -> bytes:
    """Rewrite the head that ends at `end` into a form that Sanic parses, and return its query.

    The query is removed: Sanic's URL parser is slow for it, rejects bytes that are not ASCII, and
    has offsets of 16 bits. Raises Unreadable, and NotFound for a path too long to be served.
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
    if has_line_break(path):
        raise Unreadable("not_http")
    match = _TARGET.fullmatch(path)
    if not match:
        return b""  # not HTTP, or `*`: left to Sanic
    if len(match[1]) > PATH_MAX_BYTES:
        raise NotFound
    buffer[:line_bytes] = b" ".join((method, b"/" + escape(match[1]), version))
    return mark + query
