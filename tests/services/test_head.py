"""Heads of requests: the cost of hostile ones, and the unusual ones that are served."""

import asyncio
import re
from functools import partial
from typing import Any, ClassVar

import asyncpg
import pytest
from sanic import Request, Sanic
from sanic.compat import Header

from app.errors import Unreadable
from app.http.head import HEAD_MAX_BYTES, HEADER_LINES_MAX, repair
from app.telemetry.metrics import UNANSWERED as UNANSWERED_TOTAL
from bench.testbed.client import UNANSWERED, exchange, get, head, read_answer
from bench.testbed.process import PATIENCE_S, POLL_S
from tests.gateways import Gateways, Process, Running, query

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}


class Parsed(Request):
    """The heads that Sanic has parsed."""

    sizes: ClassVar[list[int]] = []

    def __init__(self, url_bytes: bytes, headers: Header, *args: Any, **more: Any) -> None:
        super().__init__(url_bytes, headers, *args, **more)
        self.sizes.append(len(self.head))


@pytest.fixture
async def watched(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> Running:
    """A gateway, with the heads that Sanic has parsed in `Parsed.sizes`."""
    monkeypatch.setattr("app.http.app.Sanic", partial(Sanic, request_class=Parsed))
    Parsed.sizes.clear()
    return await gateways.start()


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_too_many_headers_are_never_parsed(watched: Running, method: str) -> None:
    """As many lines as are allowed are served, on either way; one more closes the connection."""
    before = UNANSWERED_TOTAL.labels("too_large")._value.get()
    target = f"/ingest/adjust?{query(user_id=method)}"
    more = {"Content-Length": "0"} if method == "POST" else {}
    headers = more | {f"x{n}": "y" for n in range(HEADER_LINES_MAX - len(more) - 1)}
    assert (await exchange(watched.port, head(method, target, headers=headers))).json == WRITTEN
    assert len(Parsed.sizes) == (1 if method == "POST" else 0)
    sent = head(method, target, headers=headers | {"one": "more"})
    assert await exchange(watched.port, sent) == UNANSWERED
    many = head(method, target).replace(b"\r\n\r\n", b"\r\n" + b"a:\r\n" * 15_000 + b"\r\n")
    assert await exchange(watched.port, many) == UNANSWERED
    # The stand-in for a request that was not read has no head.
    assert sum(map(bool, Parsed.sizes)) == (1 if method == "POST" else 0)
    assert UNANSWERED_TOTAL.labels("too_large")._value.get() - before == 2


async def test_query_is_never_parsed_by_sanic(watched: Running) -> None:
    """The part that Sanic parses does not grow with the query, in any spelling."""
    for value in ("é" * 30_000, "a b" * 20_000, "A" * 60_000):
        target = f"/ingest/adjust/?{query(user_id='ü', x=value)}".encode()
        request = head("POST", target, headers={"Content-Length": "0"})
        assert (await exchange(watched.port, request)).status == 200
    assert len(Parsed.sizes) == 3
    assert max(Parsed.sizes) < 1_000


@pytest.mark.parametrize("raw", ["é".encode(), b" ", b"\xff", b"\x01", b"<"])
async def test_largest_get_of_raw_bytes_is_served(server: Process, raw: bytes) -> None:
    """A head of raw bytes may be as large as any other; one more byte closes the connection."""
    target = f"/ingest/adjust?{query(user_id=raw.hex(), x='')}".encode()
    room = HEAD_MAX_BYTES - 1 - (len(head("GET", target)) - len(b"\r\n\r\n"))
    value = raw * (room // len(raw)) + b"A" * (room % len(raw))
    assert (await get(server.port, target + value)).json == WRITTEN
    assert await get(server.port, target + value + b"A") == UNANSWERED


async def test_raw_bytes_are_stored_whole(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """The raw bytes of a served callback are in the row, to the last of them."""
    gateway = await gateways.start()
    text = "日本é ü" * 1_000
    assert (await gateway.callback(user_id="raw", transaction_id=text)).json == WRITTEN
    row = await connection.fetchval("SELECT properties ->> 'transaction_id' FROM events")
    assert row == text


NO_PATH = [
    "http://h",
    "http://h?x",
    "http://h:80",
    "HTTP://h#f",
    "http://u:p@h?x=/y",
    "https://[::1]",
]
ROOT_PATHS = ["/", "//", "///", "http://h/", "http://h//", "http://h///?x"]


@pytest.mark.parametrize("target", [*NO_PATH, *ROOT_PATHS])
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_absolute_target_without_a_path_is_the_root(
    gateways: Gateways, caplog: pytest.LogCaptureFixture, method: str, target: str
) -> None:
    """The path is not found, and nothing is logged as an error."""
    gateway = await gateways.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(head(method, target, headers={"Connection": "close"}))
    async with asyncio.timeout(10):
        assert (await reader.read()).startswith(b"HTTP/1.1 404 ")
    writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


SAME = [
    "//ingest/adjust", "///ingest/adjust/", "http://h/ingest/adjust", "http://h//ingest/adjust/",
    "HTTPS://user@[::1]:8000/ingest/adjust", "/////ingest/%61djust",
]  # fmt: skip


@pytest.mark.parametrize("path", SAME)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_spellings_of_a_target_are_served_alike(
    server: Process, method: str, path: str
) -> None:
    """Absolute or not, and with however many slashes ahead, it is the same callback."""
    user = (method + path).encode().hex()
    request = head(method, f"{path}?{query(user_id=user)}")
    if method == "POST":
        request = head(method, f"{path}?{query(user_id=user)}", headers={"Content-Length": "0"})
    assert (await exchange(server.port, request)).json == WRITTEN


async def test_slashes_within_a_path_stay(server: Process) -> None:
    """Only slashes ahead are removed: a path that was never served is not found."""
    for path in ("/ingest//adjust", "/./ingest/adjust"):
        assert (await get(server.port, f"{path}?{query()}")).status == 404
    for path in ("//healthz", "http://h/healthz", "//readyz"):
        assert (await get(server.port, path)).status == 200


async def test_long_path_is_not_found(server: Process) -> None:
    """A path that is longer than any that is served costs no decoding."""
    for path in ("/ingest/" + "%41" * 20_000, "/ingest/" + "é" * 30_000, "/a" * 30_000):
        assert (await get(server.port, path)).status == 404
    assert "error" not in server.log.read_text()


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "//healthz"])
async def test_probes_may_be_heads(server: Process, path: str) -> None:
    """A HEAD has the head of a GET's answer, its length too, and no body."""
    async with asyncio.timeout(PATIENCE_S):
        # The measured clock in `/readyz` may take another number of digits meanwhile.
        while len((await get(server.port, path)).body) not in await lengths_of_heads(server, path):
            await asyncio.sleep(POLL_S)


async def lengths_of_heads(server: Process, path: str) -> set[int]:
    """The lengths in the answers to two HEADs; fails if either has a body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head("HEAD", path) + head("HEAD", path, headers={"Connection": "close"}))
    raw = await reader.read()
    writer.close()
    first, second, rest = raw.split(b"\r\n\r\n")
    assert rest == b""
    assert first.startswith(b"HTTP/1.1 200 ")
    assert second.startswith(b"HTTP/1.1 200 ")
    return {int(length) for length in re.findall(rb"\r\ncontent-length: (\d+)", raw)}


@pytest.mark.parametrize("value", ["Chunked", "CHUNKED", "chunked ", "\tcHuNkEd \t", " chunked"])
async def test_spellings_of_chunked_are_served(server: Process, value: str) -> None:
    """Names of codings are case-insensitive, and blanks round them mean nothing."""
    target = f"/ingest/adjust?{query(user_id=value.encode().hex())}"
    chunked = head("POST", target, headers={"transfer-encoding": value}) + b"3\r\nx=1\r\n0\r\n\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(chunked + head("GET", "/healthz"))
    async with asyncio.timeout(10):
        assert (await read_answer(reader)).json == WRITTEN
        assert (await read_answer(reader)).status == 200
    writer.close()


@pytest.mark.parametrize(
    "value",
    [
        "chunked,", ",chunked", "chunked, chunked", "identity", "chunked;q=1", '"chunked"',
        "chunked\x0b", "\x0cchunked", "chunked\xa0", "\xa0chunked", "\u2003chunked",
        "x chunked", "gzip", "", "Chunked, identity",
        "Chunked\r\nTransfer-Encoding: Chunked", "Chunked\r\nContent-Length: 3",
    ],
)  # fmt: skip
async def test_other_codings_are_unanswered(server: Process, value: str) -> None:
    """A coding that two servers may read in two ways gets no answer."""
    target = f"/ingest/adjust?{query()}"
    request = head("POST", target, headers={"Transfer-Encoding": value}) + b"3\r\nx=1\r\n0\r\n\r\n"
    assert await exchange(server.port, request + head("GET", "/healthz")) == UNANSWERED


async def test_length_behind_other_blanks_is_unanswered(server: Process) -> None:
    """Only Python takes it for a blank: other servers read a body of another length."""
    request = head("POST", f"/ingest/adjust?{query()}", headers={"Content-Length": "\xa03"})
    assert await exchange(server.port, request + b"x=1") == UNANSWERED


async def test_nothing_follows_a_line_break_in_a_query(server: Process) -> None:
    """A proxy may take it for the end of the line and the rest for a header: none is read."""
    target = f"/ingest/adjust?{query(user_id='break')} HTTP/1.1\nTransfer-Encoding: chunked\nx: "
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head("POST", target) + head("GET", "/healthz"))
    async with asyncio.timeout(10):
        assert (await read_answer(reader)).json == WRITTEN
        assert await reader.read() == b""
    writer.close()


async def test_line_break_in_a_path_is_unanswered(server: Process) -> None:
    """No vendor sends one there."""
    for break_ in ("\n", "\r"):
        assert await exchange(server.port, head("GET", f"/healthz{break_}")) == UNANSWERED


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "deflate, identity", "x\r\nA: b"])
async def test_encoded_body_is_malformed(server: Process, encoding: str) -> None:
    """A body with an encoding is refused, to a caller with the secret."""
    body = b"event_token=g3mz3t&created_at=1750500000"
    headers = {"Content-Length": str(len(body)), "Content-Encoding": encoding}
    for secret, status in (("s3cr3t", 400), ("wrong", 401)):
        target = f"/ingest/adjust?secret={secret}&app_token=abc123token"
        answer = await exchange(server.port, head("POST", target, headers=headers) + body)
        assert answer.status == status
        if status == 400:
            assert answer.json == {"error": "Malformed body."}


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", " , identity\t"])
async def test_identity_is_no_encoding(server: Process, encoding: str) -> None:
    """A body without an encoding is read; where there is no body nothing is encoded."""
    body = b"event_token=g3mz3t&created_at=1750500000"
    target = "/ingest/adjust?secret=s3cr3t&app_token=abc123token&user_id=" + encoding.encode().hex()
    headers = {"Content-Length": str(len(body)), "Content-Encoding": encoding}
    answer = await exchange(server.port, head("POST", target, headers=headers) + body)
    assert answer.json == WRITTEN
    headers = {"Content-Length": "0", "Content-Encoding": "gzip"}
    target = f"/ingest/adjust?{query(user_id='empty' + encoding.encode().hex())}"
    assert (await exchange(server.port, head("POST", target, headers=headers))).json == WRITTEN


@pytest.mark.parametrize("sent", [b"\nGET / HTTP/1.1\r\n\r\n", b"G\xc3\xa9T / HTTP/1.1\r\n\r\n"])
async def test_method_is_a_token(server: Process, sent: bytes) -> None:
    """Bytes that begin like no request get no answer."""
    assert await exchange(server.port, sent) == UNANSWERED
    with pytest.raises(Unreadable):
        repair(bytearray(sent), sent.index(b"\r\n\r\n"))
