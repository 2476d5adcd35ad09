"""An HTTP request, and the bytes of it."""

import msgspec

# The length and framing of a body are its own; the rest would keep the connection waiting.
_OWN_HEADERS = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect"})


class UnreadableInput(Exception):
    """No request in an input. The message is one line, and never quotes the input."""


class HttpRequest(msgspec.Struct, frozen=True):
    """A request as its sender sends it; `notes` say how it differs from the input.

    Texts are UTF-8; other bytes are lone surrogates, as in `surrogateescape`.
    """

    method: str
    target: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    notes: tuple[str, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes of the request."""
        lines = [f"{self.method} {self.target} HTTP/1.1", "Host: explain"]
        lines += [f"{name}: {value}" for name, value in self.headers if is_kept(name)]
        if self.body or self.method == "POST":
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join([*lines, "", ""])
        return head.encode("utf-8", "surrogateescape") + self.body


def is_kept(name: str) -> bool:
    """Whether a header of the sender is sent, and not replaced by one for these bytes."""
    return name.lower() not in _OWN_HEADERS


def target_of(url: str) -> str:
    """Return the request target of a URL, with or without a scheme: its path and query."""
    _, scheme_mark, rest = url.partition("://")
    if not scheme_mark or "?" in url[: url.index("://")]:
        rest = url
    if rest.startswith("/"):
        return rest
    start = min((place for mark in "/?" if (place := rest.find(mark)) >= 0), default=len(rest))
    path = rest[start:]
    return path if path.startswith("/") else f"/{path}"
