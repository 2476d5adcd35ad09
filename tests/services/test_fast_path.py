"""The fast path: the common callback goes straight to its handler, with the same answer."""

import asyncio

from app.http.fast_path import CALLBACK
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
