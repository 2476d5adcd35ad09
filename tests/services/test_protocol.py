"""Invalid HTTP: mended, or closed without an answer, never refused for good."""

import asyncio

import asyncpg
import pytest

from app.http import protocol as edge
from bench.testbed.client import UNANSWERED, exchange, get, head, read_answer
from tests.gateways import Gateways, Process, query

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
UNANSWERED_SERIES = "flokit_connections_unanswered_total"


RAW = {
    "München".encode(): "München",
    b"M%C3%BCnchen": "München",
    "M%C3%BCnchen München".encode(): "München München",
    b"Summer Sale": "Summer Sale",
    b"a\tb\x01c": "a\tb\x01c",
    b"a\x00b%00c": "abc",
    b"\xff\xfe%FF": "\ufffd\ufffd\ufffd",
    b"\xed\xa0\x80x": "\ufffd\ufffd\ufffdx",
    b"#1<>\"{}|\\^`[]'": "#1<>\"{}|\\^`[]'",
    b"100%ZZoff%": "100%ZZoff%",
    b"%E6%97%A5%E6%9C%AC": "日本",
    b"a?b=c": "a?b=c",
}


async def test_raw_bytes_in_the_url_are_decoded(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """Unencoded bytes in a URL are decoded like encoded ones."""
    gateway = await gateways.start()
    for number, (raw, stored) in enumerate(RAW.items()):
        parameters = query(transaction_id=f"raw-{number}").replace("user_id=usr_1", "user_id=")
        target = parameters.encode().replace(b"user_id=", b"user_id=" + raw)
        assert (await get(gateway.port, b"/ingest/adjust?" + target)).json == WRITTEN
        user_id = await connection.fetchval(
            "SELECT user_id FROM events WHERE properties ->> 'transaction_id' = $1",
            f"raw-{number}",
        )
        assert user_id == stored


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"hello\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        head("POST", f"/ingest/adjust?{query()}", headers={"Content-Length": "x"}),
        head("POST", f"/ingest/adjust?{query()}", headers={"Content-Length": "-1"}),
        head("POST", f"/ingest/adjust?{query()}", headers={"Transfer-Encoding": "chunked"})
        + b"no chunk\r\n\r\n",
        head(
            "POST",
            f"/ingest/adjust?{query()}",
            headers={"Content-Length": "1", "Expect": "a miracle"},
        ),
        b"GET http:///[ HTTP/1.1\r\n\r\n",
    ],
)
async def test_malformed_http_is_unanswered(server: Process, request_bytes: bytes) -> None:
    """Malformed HTTP gets no 4xx: it may be a callback that was cut in two."""
    before = await server.metrics()
    assert await exchange(server.port, request_bytes) == UNANSWERED
    after = await server.metrics()
    series = f'{UNANSWERED_SERIES}{{reason="not_http"}}'
    assert after[series] - before.get(series, 0) == 1


async def test_unusual_requests_are_served(server: Process) -> None:
    """An empty line ahead, an absolute target and HTTP/1.0 are unusual, and right."""
    ahead = b"\r\n\r\n" + head("GET", f"/ingest/adjust?{query(user_id='ahead')}")
    assert (await exchange(server.port, ahead)).json == WRITTEN
    both = b"\r\n" + head("GET", f"/ingest/adjust?{query(user_id='both of them')}")
    assert (await exchange(server.port, both)).json == WRITTEN
    target = f"http://gateway/ingest/adjust?{query(user_id='absolute')}"
    assert (await get(server.port, target)).json == WRITTEN
    old = f"GET /ingest/adjust?{query(user_id='old')} HTTP/1.0\r\n\r\n".encode()
    assert (await exchange(server.port, old)).json == WRITTEN


async def test_stalled_body_is_closed_unanswered(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that stalls is closed unanswered after a while, and counted."""
    monkeypatch.setattr(edge, "BODY_TIMEOUT_S", 0.2)
    gateway = await gateways.start()
    series = f'{UNANSWERED_SERIES}{{reason="body_too_slow"}}'
    before = (await gateway.metrics()).get(series, 0)
    request = head("POST", f"/ingest/adjust?{query()}", headers={"Content-Length": "10"})
    assert await exchange(gateway.port, request + b"x=") == UNANSWERED
    assert (await gateway.metrics())[series] == before + 1


async def test_body_is_read_from_verified_callers_only(server: Process) -> None:
    """A body is read only from a caller that is verified; others are answered before."""
    target = f"/ingest/adjust?{query(secret='wrong')}"
    request = head("POST", target, headers={"Content-Length": "1000000"}) + b"x=1"
    assert (await exchange(server.port, request)).status == 401


async def test_pipelined_requests_are_answered_in_order(server: Process) -> None:
    """Many requests on one connection, sent at once, are answered in order, errors included."""
    requests = [
        head("GET", f"/ingest/adjust?{query(user_id='pipelined')}"),
        head("GET", "/ingest/nobody"),
        head("GET", f"/ingest/adjust?{query(secret='wrong')}"),
        head("POST", f"/ingest/adjust?{query(user_id='second')}", headers={"Content-Length": "3"})
        + b"x=1",
        head("GET", "/healthz"),
    ]
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"".join(requests))
    async with asyncio.timeout(10):
        answers = [await read_answer(reader) for _ in requests]
    writer.close()
    assert [answer.status for answer in answers] == [200, 404, 401, 200, 200]


async def test_chunked_body_is_read(server: Process) -> None:
    """A body of unknown length is a body like any other."""
    target = "/ingest/adjust?secret=s3cr3t&app_token=abc123token&user_id=chunked"
    body = b"event_token=g3mz3t&created_at=1750500000"
    request = head("POST", target, headers={"Transfer-Encoding": "chunked"})
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert (await exchange(server.port, request + chunks)).json == WRITTEN


async def test_expected_continue_is_answered(server: Process) -> None:
    """A client that waits for a 100 before it sends its body gets it."""
    headers = {"Content-Length": "3", "Expect": "100-continue"}
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(head("POST", f"/ingest/adjust?{query(user_id='expected')}", headers=headers))
    async with asyncio.timeout(10):
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"x=1")
        assert (await read_answer(reader)).status == 200
    writer.close()


# By the number of proxies: X-Forwarded-For, and whether its address is on the allowlist.
FORWARDED: dict[str, dict[str | None, bool]] = {
    "0": {
        None: True,  # the peer itself: loopback is on the list
        "203.0.113.9": True,  # forged, and not looked at
        "203.0.113.9, 203.0.113.9": True,
        "": True,
    },
    "1": {
        None: False,  # past the proxy
        "127.0.0.1": True,
        "203.0.113.9": False,
        "127.0.0.1, 203.0.113.9": False,  # entries that the proxy did not write do not count
        "203.0.113.9, 127.0.0.1": True,
        "nonsense": False,
        "127.0.0.1:5555": True,
        "203.0.113.9:5555": False,
        "::ffff:127.0.0.1": True,
        "2001:db8::1": True,
        "[2001:db8::1]": True,
        "[2001:db8::1]:5555": True,
        "2001:db9::1": False,
        # Each line is one of the header's; the proxy's own entry is in the last.
        "203.0.113.9\r\nX-Forwarded-For: 127.0.0.1": True,
        "127.0.0.1\r\nX-Forwarded-For: 203.0.113.9": False,
        "127.0.0.1\r\nx-forwarded-for: 203.0.113.9, 203.0.113.9": False,
        "127.0.0.1\r\nX-Forwarded-For:": False,
        "": False,
        ",": False,
        "127.0.0.1,": False,
        "127.0.0.1, ,": False,
        "203.0.113.9,\t 127.0.0.1 \t": True,
        "unknown": False,
        "127.0.0.1, unknown": False,
        "_hidden": False,
        "for=127.0.0.1": False,
        '"127.0.0.1"': False,
        "127.1": False,
        "127.0.0.01": False,
        "0x7f.0.0.1": False,
        "2130706433": False,
        "127.0.0.1:5555:5555": False,
        "127.0.0.1/8": False,
        "127.0.0.1 203.0.113.9": False,
        "2001:DB8::1": True,
        "2001:db8::1%eth0": True,
        "2001:db9::1%2001:db8::1": False,
        "fe80::1%127.0.0.1": False,
        "::ffff:203.0.113.9": False,
        "[::ffff:127.0.0.1]:5555": True,
        "\u0661\u0662\u0667.0.0.1": False,
        "127.0.0.1" + "A" * 60_000: False,
        "2001:db8::1%" + "A" * 60_000: False,
    },
    "2": {
        "127.0.0.1": False,
        "127.0.0.1, 203.0.113.9": True,
        "203.0.113.9, 127.0.0.1, 203.0.113.9": True,
        "127.0.0.1, 203.0.113.9, 127.0.0.1": False,
        None: False,
        "": False,
        ",": False,
        "127.0.0.1,": True,  # the proxy next to us does not name its caller
        "127.0.0.1, ,203.0.113.9": False,
        "127.0.0.1\r\nX-Forwarded-For: 203.0.113.9": True,
        "127.0.0.1\r\nX-Forwarded-For: 203.0.113.9, 203.0.113.9": False,
        "127.0.0.1, 203.0.113.9\r\nX-Forwarded-For: 203.0.113.9": False,
        "127.0.0.1\r\nX-Forwarded-For: 127.0.0.1\r\nX-Forwarded-For: 203.0.113.9": True,
    },
}
# Headers that other software trusts; they may hold anything, and do not count.
IGNORED = {
    "Forwarded": "for=127.0.0.1;by=127.0.0.1",
    "X-Forwarded": "127.0.0.1",
    "X_Forwarded_For": "127.0.0.1",
    "X-Real-IP": "127.0.0.1",
    "X-Client-IP": "127.0.0.1",
    "True-Client-IP": "127.0.0.1",
}


@pytest.mark.parametrize("proxies", FORWARDED)
async def test_forged_address_does_not_count(gateways: Gateways, proxies: str) -> None:
    """Behind counted proxies, no caller can choose the address that the allowlist sees."""
    gateway = await gateways.start(
        PROXIES_COUNT=proxies, ADJUST_IP_ALLOWLIST="127.0.0.0/8, 2001:db8::/32"
    )
    for forwarded, allowed in FORWARDED[proxies].items():
        headers = IGNORED if forwarded is None else IGNORED | {"X-Forwarded-For": forwarded}
        answer = await get(gateway.port, f"/ingest/adjust?{query()}", headers=headers)
        assert answer.status == (200 if allowed else 401), (forwarded or "")[:100]


@pytest.mark.parametrize("proxies", ["0", "1", "2"])
async def test_stranger_with_a_forged_address_is_refused(gateways: Gateways, proxies: str) -> None:
    """A caller that is not on the list, and comes past the proxies, gets no access by a header."""
    gateway = await gateways.start(PROXIES_COUNT=proxies, ADJUST_IP_ALLOWLIST="198.51.100.7")
    forged = {name: value.replace("127.0.0.1", "198.51.100.7") for name, value in IGNORED.items()}
    for more in ({}, {"X-Forwarded-For": "198.51.100.7"} if proxies != "1" else {}):
        answer = await get(gateway.port, f"/ingest/adjust?{query()}", headers=forged | more)
        assert answer.status == 401
