"""Requests of the fast path, and receipts as bytes."""

import pytest

from app.errors import Answer
from app.http import fast_path
from app.http.fast_path import CALLBACK, LazyHeaders
from app.http.responses import response_bytes
from bench.testbed.client import head, post_request
from tests.gateways import query

TARGET = f"/ingest/adjust?{query()}"


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
    """An adapter finds every header under its name in any case; of repeats the first counts."""
    sent = head("GET", TARGET, headers={"X-Signature": " a:b ", "Connection": "keep-alive"})
    plain = CALLBACK.match(sent.replace(b"\r\n\r\n", b"\r\nx-signature: c\r\n\r\n"))
    assert plain
    headers = LazyHeaders(plain[3])
    assert headers["x-signature"] == headers["X-Signature"] == "a:b "
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


BODY = b'{"event_name":"install"}'
POST = post_request(TARGET, BODY, "application/json")


async def test_plain_post_is_taken_with_its_body() -> None:
    """A POST with its length and its whole body is taken; the next request stays."""
    for sent in (POST, POST.replace(b"Content-Length: ", b"content-length:")):
        buffer = bytearray(sent + b"GET ")
        taken = fast_path.take(buffer)
        assert taken is not None
        assert buffer == b"GET "
        assert (taken.method, taken.vendor, taken.query) == ("POST", "adjust", query().encode())
        assert LazyHeaders(taken.lines)["content-type"] == "application/json"
        assert await taken.read_body() == BODY
        assert await taken.read_body() == b""  # not held any longer


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST[:-1],
        post_request(TARGET, b"x" * 16_000),
        head("POST", TARGET),
        *(
            POST.replace(b"Content-Length: 24", line)
            for line in (
                b"Content-Length: +24", b"Content-Length: 24 ", b"Content-Length: 0x18",
                b"Content-Length: 24\r\nContent-Length: 24", b"Content-Length: 2_4",
                b"Content-Length: 24\r\nContent-Length: 23", b"Content-Length: 24, 24",
                b"Content-Length: 24\r\nTransfer-Encoding: chunked", b"Content-Length : 24",
                b"Transfer-Encoding: chunked", b"Content-Encoding: gzip\r\nContent-Length: 24",
                b"Content-Length: 24\r\nExpect: 100-continue", b"Content-Length: -1",
                b"Content-Length: 24\r\nConnection: close", b"Content-Length:\t24",
            )
        ),
    ],
)  # fmt: skip
def test_other_posts_go_through_sanic(request_bytes: bytes) -> None:
    """A POST that is large, incomplete, encoded or in doubtful framing stays in the buffer."""
    buffer = bytearray(request_bytes)
    assert fast_path.take(buffer) is None
    assert buffer == request_bytes
