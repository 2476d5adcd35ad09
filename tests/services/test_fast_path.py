"""The usual callback goes straight to its handler, and nobody can tell from the outside."""

import asyncio
from typing import Any, cast

import pytest
from sanic.compat import Header

from app.errors import Answer
from app.http.fast_path import USUAL, LazyHeaders, UsualCallback, bytes_of
from bench.testbed.client import head
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


async def test_answer_is_not_that_of_sanic(gateways: Gateways) -> None:
    """A receipt and an error have the same bytes, whichever way the callback has taken."""
    gateway = await gateways.start()
    for path, status in (
        (TARGET, b"200 OK"),
        ("/ingest/nobody?x=1", b"404 Not Found"),
        ("/ingest/adjust?secret=wrong", b"401 Unauthorized"),
    ):
        await answers(gateway.port, head("GET", path), LAST)  # from now on it is a duplicate
        assert status in await both_ways(gateway.port, path)
    await gateway.app.ctx.gateway.buffer.close()
    assert b"503 Service Unavailable" in await both_ways(gateway.port, TARGET)
    gateway.app.ctx.gateway.access.verify = None
    assert b"500 Internal Server Error" in await both_ways(gateway.port, TARGET)


async def both_ways(port: int, path: str) -> bytes:
    """What comes back, usual way and Sanic's."""
    vendor = path.index("/", 1) + 1
    escaped = f"{path[:vendor]}%{ord(path[vendor]):x}{path[vendor + 1 :]}"
    usual, other = head("GET", path), head("GET", escaped)
    assert USUAL.match(usual)
    assert not USUAL.match(other)
    received = await answers(port, usual, LAST)
    assert received == await answers(port, other, LAST)
    assert received.count(b"HTTP/1.1 ") == 2
    return received


async def test_drain_keeps_the_connection(gateways: Gateways) -> None:
    """While draining, a usual callback is answered, and its connection closed."""
    gateway = await gateways.start()
    gateway.app.ctx.draining = True
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
def test_usual_is_taken_for_granted(request_bytes: bytes) -> None:
    """Whatever says more of the body or the connection, or is not quite HTTP, is Sanic's."""
    assert not USUAL.match(request_bytes)


async def test_headers_of_a_usual_callback_are_lost(gateways: Gateways) -> None:
    """An adapter finds every header under its name in lower case, and Sanic every attribute."""
    gateway = await gateways.start()
    sent = head("GET", TARGET, headers={"X-Signature": " a:b ", "Connection": "keep-alive"})
    usual = USUAL.match(sent)
    assert usual
    http: Any = cast("Any", type("Http", (), {}))()
    http.protocol = type("Protocol", (), {"app": gateway.app, "transport": None})()
    request = UsualCallback(usual, http)
    request.conn_info = None
    headers = LazyHeaders(request)
    assert headers["x-signature"] == "a:b "
    assert headers.get("x-nothing") is None
    assert dict(headers)["connection"] == "keep-alive"
    assert (request.method, request.path, request.stream) == ("GET", "/ingest/adjust", http)
    assert request.headers == Header(
        {"host": "gateway", "x-signature": "a:b ", "connection": "keep-alive"}
    )
    with pytest.raises(AttributeError):
        _ = request.nothing_of_that_name


def test_receipt_is_not_kept_alive() -> None:
    """The head of a receipt tells its length, and what becomes of the connection."""
    assert bytes_of(Answer(200, b"{}"), keep_alive=True).startswith(
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n"
    )
    assert b"\r\nconnection: close\r\n" in bytes_of(Answer(200, b"{}"), keep_alive=False)
