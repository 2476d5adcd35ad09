"""A small HTTP client that sends exactly the bytes that it is given."""

import asyncio
from typing import NamedTuple

import msgspec

TIMEOUT_S = 20


class Answer(NamedTuple):
    """The answer: status 0 where the connection was closed, or refused, without one."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> object:
        """The decoded body."""
        return msgspec.json.decode(self.body)


UNANSWERED = Answer(0, {}, b"")


async def exchange(port: int, request: bytes) -> Answer:
    """Send the bytes of one request, and return the answer on its connection."""
    async with asyncio.timeout(TIMEOUT_S):
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**22)
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
        head = await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return UNANSWERED
    first, *lines = head.decode().strip().split("\r\n")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Answer(int(first.split()[1]), headers, body)


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


async def post(
    port: int, target: str | bytes, body: bytes, content_type: str | None = None
) -> Answer:
    """Send a POST."""
    headers = {"Content-Length": str(len(body))}
    if content_type is not None:
        headers["Content-Type"] = content_type
    return await exchange(port, head("POST", target, headers=headers) + body)
