"""The fast path: the common callback goes straight to its handler, with the same answer."""

import asyncio

import pytest

from app.errors import Answer
from app.http.fast_path import CALLBACK, LazyHeaders
from app.http.responses import response_bytes
from tests.client import head
from tests.gateways import Gateways, query

TARGET = f"/ingest/adjust?{query()}"
LAST = head("GET", "/healthz", headers={"Connection": "close"})


async def answers(port: int, *requests: bytes) -> bytes:
    """All bytes that come back on one connection, which the last request closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"".join(requests))
    async with asyncio.timeout(10):
        received = await reader.read()
    writer.close()
    # Sanic's own, and always empty.
    return received.replace(b"alt-svc: \r\n", b"")


async def test_fast_path_answers_like_sanic(gateways: Gateways) -> None:
    """A receipt and an error have the same bytes, on the fast path and through Sanic."""
    gateway = await gateways.start()
    for path, status in (
        (TARGET, b"200 OK"),
        ("/ingest/nobody?x=1", b"404 Not Found"),
        ("/ingest/adjust?secret=wrong", b"401 Unauthorized"),
    ):
        await answers(gateway.port, head("GET", path), LAST)  # from now on it is a duplicate
        assert status in await both_ways(gateway.port, path)
    await gateway.gateway.buffer.close()
    assert b"503 Service Unavailable" in await both_ways(gateway.port, TARGET)
    gateway.gateway.access.verify = None  # type: ignore[method-assign, assignment]
    assert b"500 Internal Server Error" in await both_ways(gateway.port, TARGET)


async def both_ways(port: int, path: str) -> bytes:
    """The answers on the fast path and through Sanic."""
    vendor = path.index("/", 1) + 1
    escaped = f"{path[:vendor]}%{ord(path[vendor]):x}{path[vendor + 1 :]}"
    usual, other = head("GET", path), head("GET", escaped)
    assert CALLBACK.match(usual)
    assert not CALLBACK.match(other)
    received = await answers(port, usual, LAST)
    assert received == await answers(port, other, LAST)
    assert received.count(b"HTTP/1.1 ") == 2
    return received


async def test_drain_closes_connections_of_the_fast_path(gateways: Gateways) -> None:
    """While draining, a callback on the fast path is answered, and its connection closed."""
    gateway = await gateways.start()
    gateway.gateway.is_draining = True
    received = await answers(gateway.port, head("GET", TARGET), head("GET", TARGET))
    assert b"\r\nconnection: close\r\n" in received
    assert received.count(b"HTTP/1.1 200 OK") == 1


@pytest.mark.parametrize(
    "request_bytes",
    [
        head("POST", TARGET),
        head("HEAD", TARGET),
        head("GET", "/healthz"),
        head("GET", "/ingest/%61djust?x=1"),
        head("GET", "/ingest/adjust/more?x=1"),
        head("GET", TARGET + "\x7f"),
        head("GET", TARGET + " x"),
        head("GET", TARGET).replace(b"HTTP/1.1", b"HTTP/1.0"),
        head("GET", TARGET)[:-2],
        b"\r\n" + head("GET", TARGET),
        *(
            head("GET", TARGET, headers={"X-A": "b", name: value})
            for name, value in {
                "Content-Length": "3", "content-length": "0", "TRANSFER-ENCODING": "chunked",
                "Expect": "100-continue", "Connection": "close", "Upgrade": "websocket",
                "X Y": "z", "X\x00": "y", "X": "a\nContent-Length: 3", "Y": "\x01",
            }.items()
        ),
    ],
)  # fmt: skip
def test_unusual_requests_go_through_sanic(request_bytes: bytes) -> None:
    """Requests with more about the body or the connection, or not quite HTTP, are Sanic's."""
    assert not CALLBACK.match(request_bytes)


def test_headers_are_the_same_on_the_fast_path() -> None:
    """An adapter finds every header under its name in lower case; of repeats the first counts."""
    sent = head("GET", TARGET, headers={"X-Signature": " a:b ", "Connection": "keep-alive"})
    plain = CALLBACK.match(sent.replace(b"\r\n\r\n", b"\r\nx-signature: c\r\n\r\n"))
    assert plain
    headers = LazyHeaders(plain[3])
    assert headers["x-signature"] == "a:b "
    assert headers.get_all("x-signature") == ["a:b ", "c"]
    assert headers.get("x-nothing") is None
    assert dict(headers) == {
        "host": "gateway", "x-signature": "a:b ", "connection": "keep-alive",
    }  # fmt: skip
    assert len(headers) == 3


def test_receipt_has_its_length_and_connection() -> None:
    """The head of a receipt has its length, and the state of the connection."""
    assert response_bytes(Answer(200, b"{}"), keep_alive=True).startswith(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n"
    )
    assert b"\r\nconnection: close\r\n" in response_bytes(Answer(200, b"{}"), keep_alive=False)
