"""The fast path: the common callback goes straight to its handler, with the same answer."""

import asyncio

from app.http import fast_path
from app.http.fast_path import CALLBACK
from bench.testbed.client import head, post_request
from tests.gateways import Gateways, query

TARGET = f"/ingest/adjust?{query()}"
BODY = b'{"event_token":"g3mz3t","created_at":1750500000,"user_id":"usr_1"}'
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


async def test_post_is_answered_like_by_sanic(gateways: Gateways) -> None:
    """Each outcome of a POST has the same bytes, on the fast path and through Sanic."""
    gateway = await gateways.start()
    for target, body, status in (
        ("/ingest/adjust?secret=s3cr3t&app_token=abc123token", BODY, b"200 OK"),
        ("/ingest/adjust?secret=s3cr3t&app_token=abc123token", b"[]", b"400 Bad Request"),
        ("/ingest/adjust?secret=s3cr3t&app_token=abc123token", b"{" * 9_000, b"400 Bad Request"),
        ("/ingest/adjust?secret=wrong&app_token=abc123token", BODY, b"401 Unauthorized"),
        ("/ingest/nobody?x=1", BODY, b"404 Not Found"),
        (TARGET, b"", b"200 OK"),
    ):
        plain = post_request(target, body, "application/json")
        doubtful = plain.replace(b"Content-Length: ", b"Content-Length:  ")
        await answers(gateway.port, plain, LAST)  # from now on it is a duplicate
        received = await answers(gateway.port, plain, plain, LAST)
        assert fast_path.take(bytearray(plain)) is not None
        assert fast_path.take(bytearray(doubtful)) is None
        assert received == await answers(gateway.port, doubtful, doubtful, LAST)
        assert received.count(b"HTTP/1.1 ") == 3
        assert status in received


async def test_body_in_pieces_is_read_whole(gateways: Gateways) -> None:
    """A body that arrives after its head is read by Sanic, and is the same callback."""
    gateway = await gateways.start()
    target = "/ingest/adjust?secret=s3cr3t&app_token=abc123token"
    plain = post_request(target, BODY, "application/json")
    assert b'"written":1' in await answers(gateway.port, plain, LAST)
    for end in (len(plain) - len(BODY), len(plain) - 3):
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        writer.write(plain[:end])
        await writer.drain()
        writer.write(plain[end:] + LAST)
        async with asyncio.timeout(10):
            received = await reader.read()
        writer.close()
        assert b'"duplicate":1' in received
