"""The HTTP client of bench and tests: it sends exactly the bytes that it is given."""

import asyncio
import time
from enum import Enum
from http.client import HTTPException
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec

TIMEOUT_S = 20.0
HEAD_BYTES_MAX = 2**22


class NoAnswer(Enum):
    """The reason of a missing answer."""

    REFUSED = "refused"
    CLOSED = "closed"
    TIMED_OUT = "timed out"
    NOT_HTTP = "not HTTP"


class Answer(NamedTuple):
    """An HTTP response, with lower-case header names; status 0 without one.

    `Connection` adds the times (seconds since the epoch), and the reason of a missing answer.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    sent_at: float = 0.0
    answered_at: float = 0.0
    missing: NoAnswer | None = None

    @property
    def json(self) -> object:
        """The decoded body."""
        return msgspec.json.decode(self.body)


UNANSWERED = Answer(0, {}, b"")


class Connection:
    """A keep-alive connection with one request at a time; the first request opens it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._is_closed = False
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def is_closed(self) -> bool:
        """Whether the connection takes no more requests."""
        if self._is_closed or self._streams is None:
            return self._is_closed
        reader, writer = self._streams
        return reader.at_eof() or writer.transport.is_closing()

    async def send(self, request: bytes, timeout_s: float = TIMEOUT_S) -> Answer:
        """Return the answer to a request, or the reason of its absence."""
        sent_at = time.time()
        try:
            async with asyncio.timeout(timeout_s):
                reader, writer = await self._open()
                writer.write(request)
                answer = parse_head(await reader.readuntil(b"\r\n\r\n"))
                body = await reader.readexactly(int(answer.headers.get("content-length", "0")))
        except TimeoutError:
            return self._unanswered(sent_at, NoAnswer.TIMED_OUT)
        except (OSError, asyncio.IncompleteReadError):
            was_open = self._streams is not None
            return self._unanswered(sent_at, NoAnswer.CLOSED if was_open else NoAnswer.REFUSED)
        except (ValueError, asyncio.LimitOverrunError):
            return self._unanswered(sent_at, NoAnswer.NOT_HTTP)
        if answer.headers.get("connection") == "close":
            self.close()
        return answer._replace(body=body, sent_at=sent_at, answered_at=time.time())

    async def hang_up(self, request: bytes, after_s: float) -> None:
        """Send a request, or a part of one, and close without waiting for the answer."""
        try:
            _, writer = await self._open()
        except OSError:
            self._is_closed = True
            return
        writer.write(request)
        await asyncio.sleep(after_s)
        self.close()

    def close(self) -> None:
        """Close the connection at once."""
        self._is_closed = True
        if self._streams is not None:
            self._streams[1].transport.abort()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(
                "127.0.0.1", self._port, limit=HEAD_BYTES_MAX
            )
        return self._streams

    def _unanswered(self, sent_at: float, reason: NoAnswer) -> Answer:
        self.close()
        return UNANSWERED._replace(sent_at=sent_at, answered_at=time.time(), missing=reason)


def parse_head(head: bytes) -> Answer:
    """Return the answer with this head, without its body; raises ValueError for other bytes."""
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    protocol, status, *_ = first.split()
    if not protocol.startswith("HTTP/1."):
        raise ValueError(first)
    pairs = (line.partition(":") for line in lines)
    return Answer(int(status), {name.strip().lower(): text.strip() for name, _, text in pairs}, b"")


async def exchange(port: int, request: bytes) -> Answer:
    """Send the bytes of one request on a connection of its own; raises TimeoutError."""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=HEAD_BYTES_MAX)
        except ConnectionError:
            return UNANSWERED
        try:
            writer.write(request)
            return await read_answer(reader)
        finally:
            writer.close()


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Return the next answer on a connection."""
    try:
        answer = parse_head(await reader.readuntil(b"\r\n\r\n"))
    except (asyncio.IncompleteReadError, ConnectionError):
        return UNANSWERED
    body = await reader.readexactly(int(answer.headers.get("content-length", "0")))
    return answer._replace(body=body)


def head(method: str, target: str | bytes, *, headers: dict[str, str] | None = None) -> bytes:
    """Return the head of a request; the target goes as it is."""
    raw = target.encode() if isinstance(target, str) else target
    lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    return (
        method.encode() + b" " + raw + b" HTTP/1.1\r\nHost: gateway\r\n" + lines.encode() + b"\r\n"
    )


async def get(port: int, target: str | bytes, *, headers: dict[str, str] | None = None) -> Answer:
    """Send a GET."""
    return await exchange(port, head("GET", target, headers=headers))


def post_request(target: str | bytes, body: bytes, content_type: str | None = None) -> bytes:
    """Return the bytes of a POST."""
    headers = {"Content-Length": str(len(body))}
    if content_type is not None:
        headers["Content-Type"] = content_type
    return head("POST", target, headers=headers) + body


async def post(
    port: int, target: str | bytes, body: bytes, content_type: str | None = None
) -> Answer:
    """Send a POST."""
    return await exchange(port, post_request(target, body, content_type))


def parse_metrics(text: str) -> dict[str, float]:
    """Return the values of a `/metrics` page, by series."""
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {series: float(value) for series, _, value in lines}


async def metrics(port: int) -> dict[str, float]:
    """Return the metrics of a gateway, by series."""
    return parse_metrics((await get(port, "/metrics")).body.decode())


def fetch(port: int, target: str, timeout_s: float = TIMEOUT_S) -> Answer:
    """Send a GET from code without an event loop; UNANSWERED without an answer."""
    try:
        with urlopen(f"http://127.0.0.1:{port}{target}", timeout=timeout_s) as answer:
            return Answer(answer.status, {}, answer.read())
    except HTTPError as error:
        return Answer(error.code, {}, error.read())
    except (OSError, HTTPException):
        return UNANSWERED
