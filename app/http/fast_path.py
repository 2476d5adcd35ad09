"""The usual callback: a GET with everything in its URL, which goes straight to its handler.

Sanic takes every request apart, makes some thirty attributes of it, looks for its route, and puts
the head of each answer together: with system calls left out, an empty handler costs 25 µs. A usual
callback is recognised by one pattern (0.8 µs), and its way to the handler and back costs 5 µs.
Whatever else comes goes Sanic's own way.
"""

import re
from collections import UserDict
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from sanic import Request
from sanic.compat import Header
from sanic.http import Http

from app.errors import Answer
from app.http.head import HEADER_LINES_MAX

# Names are tokens, values hold no control characters (RFC 9110, 5.1 and 5.5). What else Sanic
# lets through, a proxy in front may read in another way, and see one request where there are two.
HEADER = rb"[\w!#$%&'*+.^`|~-]++:[^\x00-\x08\x0a-\x1f\x7f]*+"
# What would say more of the body or the connection.
_SPECIAL = rb"(?i:content-length|transfer-encoding|expect|upgrade|connection:(?! keep-alive\r))"
USUAL = re.compile(
    rb"GET (/ingest/([\w-]+)/?\?[!-~]*+) HTTP/1\.1(?:\r\n(?!%b)%b){0,%d}+\r\n\r\n"
    % (_SPECIAL, HEADER, HEADER_LINES_MAX)
)


class UsualCallback(Request):
    """Sanic's own class, whose attributes are made when somebody asks for one of them."""

    __slots__ = ("vendor",)
    stream: Any

    def __init__(self, usual: re.Match[bytes], http: Http) -> None:
        self.head, self.raw_url, self.vendor = usual[0], usual[1], usual[2].decode()
        self.app, self.stream = http.protocol.app, http

    def __getattr__(self, name: str) -> object:
        """Make all attributes; for the address behind a proxy, and for errors."""
        if name not in Request.__slots__:
            raise AttributeError(name)
        stream, conn_info = self.stream, self.conn_info
        lines = self.head.decode(errors="surrogateescape").split("\r\n")[1:-2]
        pairs = [line.split(":", 1) for line in lines]
        headers = Header([(name.lower(), value.lstrip()) for name, value in pairs])
        transport = stream.protocol.transport
        super().__init__(self.raw_url, headers, "1.1", "GET", transport, self.app, self.head)
        self.stream, self.conn_info = stream, conn_info
        return getattr(self, name)


class LazyHeaders(UserDict[str, str]):
    """The headers of a usual callback, for adapters that want them."""

    def __init__(self, request: Request) -> None:
        self._request = request

    @property
    def data(self) -> Header:  # type: ignore[override]
        """What is behind all methods."""
        return self._request.headers


@lru_cache(maxsize=16)
def bytes_of(answer: Answer, keep_alive: bool) -> bytes:
    """Return what Sanic would send, but for its empty `alt-svc`."""
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        *(f"{name}: {value}" for name, value in answer.headers),
        f"content-length: {len(answer.body)}",
        f"connection: {'keep-alive' if keep_alive else 'close'}",
        "content-type: application/json",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + answer.body
