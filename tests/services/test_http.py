"""Every row of the status table of the README, over HTTP."""

import asyncio

import pytest

from app.http.head import HEAD_MAX_BYTES
from app.http.protocol import BODY_MAX_BYTES
from bench.testbed.client import UNANSWERED, exchange, get, head, post
from tests.gateways import Gateways, Process, Running, query

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
DUPLICATE = {"received": 1, "written": 0, "duplicate": 1, "dropped": 0}
DROPPED = {"received": 1, "written": 0, "duplicate": 0, "dropped": 1}
UNVERIFIED = {"error": "Unverified callback."}
FORM = "application/x-www-form-urlencoded"
JSON = "application/json"


@pytest.fixture
async def gateway(gateways: Gateways) -> Running:
    """A gateway with the default settings."""
    return await gateways.start()


async def test_written_then_duplicate_then_dropped(gateway: Running) -> None:
    """The three receipts have the body that is documented, and JSON's content type."""
    for parameters, receipt in (
        ({}, WRITTEN),
        ({}, DUPLICATE),
        ({"event_token": "zzzzzz"}, DROPPED),
    ):
        answer = await gateway.callback(**parameters)
        assert (answer.status, answer.json) == (200, receipt)
        assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("path", ["/ingest/adjust", "/ingest/adjust/", "/ingest/%61djust"])
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_trailing_slash_is_no_redirect(server: Process, method: str, path: str) -> None:
    """Adjust follows no redirect: the path is served with and without a slash, escaped or not."""
    headers = {"Content-Length": "0"} if method == "POST" else {}
    target = f"{path}?{query(user_id=method + path.replace('%', ''))}"
    assert (await exchange(server.port, head(method, target, headers=headers))).json == WRITTEN


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, b"event_token=g3mz3t&created_at=1750500000&user_id=usr_1"),
        (f"{FORM}; charset=utf-8", b"event_token=g3mz3t&created_at=1750500000&user_id=usr_1"),
        (JSON, b'{"event_token":"g3mz3t","created_at":1750500000,"user_id":"usr_1"}'),
        ("Application/JSON; charset=utf-8", b'{"event_token":"g3mz3t","created_at":1750500000}'),
        (None, b'{"event_token":"g3mz3t","created_at":1750500000,"user_id":"usr_1"}'),
        (None, b"event_token=g3mz3t&created_at=1750500000&user_id=usr_1"),
    ],
)
async def test_post_body_is_read(gateway: Running, content_type: str | None, body: bytes) -> None:
    """A form or a flat JSON object carries the parameters that the URL does not."""
    assert (await gateway.post(body, content_type)).json == WRITTEN


async def test_body_cannot_override_the_url(gateway: Running) -> None:
    """The URL comes first; app and secret are read from it alone."""
    body = b"secret=wrong&app_token=nobody&event_token=zzzzzz&created_at=1750500000"
    answer = await gateway.post(body, FORM, event_token="g3mz3t")
    assert answer.json == WRITTEN
    credentials = b"secret=s3cr3t&app_token=abc123token&event_token=g3mz3t&created_at=1750500000"
    unverified = await post(gateway.port, "/ingest/adjust", credentials, FORM)
    assert (unverified.status, unverified.json) == (401, UNVERIFIED)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (JSON, b"[1]"),
        (JSON, b'{"a":1'),
        (JSON, b'"text"'),
        ("text/plain", b"hello"),
        ("multipart/form-data; boundary=x", b"--x--"),
        ("application/octet-stream", b"\x00\x01"),
    ],
)
async def test_malformed_body_is_refused(server: Process, content_type: str, body: bytes) -> None:
    """A body that is neither is refused for good, but only to a caller with the secret."""
    answer = await server.post(body, content_type)
    assert (answer.status, answer.json) == (400, {"error": "Malformed body."})
    unverified = await server.post(body, content_type, secret="wrong")
    assert (unverified.status, unverified.json) == (401, UNVERIFIED)


@pytest.mark.parametrize("secret", ["wrong", "", "S3CR3T", "s3cr3t%20", "s3cr3t%00", "s3cr3", "é"])
async def test_secret_is_compared_exactly(server: Process, secret: str) -> None:
    """The secret is compared exactly: decoded, but neither trimmed nor cleaned."""
    answer = await server.callback(secret=secret)
    assert (answer.status, answer.json) == (401, UNVERIFIED)


async def test_rotated_secrets_are_both_valid(gateways: Gateways) -> None:
    """While a secret is being rotated, the old one and the new one are accepted."""
    gateway = await gateways.start(ADJUST_CALLBACK_SECRET="old+one,néw,s3cr3t")
    for secret in ("old%2Bone", "n%C3%A9w", "néw", "%733cr3t"):
        assert (await gateway.callback(secret=secret)).status == 200
    assert (await gateway.callback(secret="old+one")).status == 401


async def test_rejections_are_counted(gateway: Running) -> None:
    """A request that is no callback is counted by its reason; a malformed one is a drop."""
    before = await gateway.metrics()
    await gateway.callback(secret="wrong")
    await get(gateway.port, "/ingest/nobody")
    await gateway.post(b"[]", JSON)
    await get(gateway.port, "/nowhere")
    await exchange(gateway.port, head("PUT", "/healthz"))
    after = await gateway.metrics()
    for reason in (
        "wrong_secret", "unknown_vendor", "unknown_path", "method_not_allowed",
    ):  # fmt: skip
        series = f'flokit_requests_rejected_total{{reason="{reason}"}}'
        assert after[series] - before.get(series, 0) == 1
    dropped = (
        'flokit_callbacks_dropped_total{reason="malformed",vendor="adjust",workspace="ws_test"}'
    )
    assert after[dropped] - before[dropped] == 1


async def test_unknown_vendor_is_named(server: Process) -> None:
    """A vendor without an adapter is named in the answer, before any secret is compared."""
    answer = await get(server.port, "/ingest/nobody")
    assert (answer.status, answer.json) == (404, {"error": "Unknown vendor: nobody"})
    answer = await get(server.port, "/ingest/%22%C3%A9?secret=s3cr3t")
    assert (answer.status, answer.json) == (404, {"error": 'Unknown vendor: "é'})


async def test_no_secret_configured_is_a_503(gateways: Gateways) -> None:
    """Our own missing configuration lets no caller in, and loses nothing: 503."""
    gateway = await gateways.start(ADJUST_CALLBACK_SECRET="")
    for secret in ("", "s3cr3t"):
        answer = await gateway.callback(secret=secret)
        assert (answer.status, answer.json) == (503, {"error": "Service Unavailable"})
        assert int(answer.headers["retry-after"]) > 0


NOT_SERVED = [
    (method, path)
    for method in ("PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW")
    for path in ("/ingest/adjust", "/ingest/nobody", "/healthz", "/metrics")
    if (method, path) != ("HEAD", "/healthz")  # for probes
]


@pytest.mark.parametrize(("method", "path"), NOT_SERVED)
async def test_other_method_is_refused(server: Process, method: str, path: str) -> None:
    """A method that is not served is refused in the same shape."""
    answer_bytes = head(method, f"{path}?{query()}", headers={"Connection": "close"})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(answer_bytes)
    raw = await reader.read()
    writer.close()
    assert raw.startswith(b"HTTP/1.1 405 ")
    if method != "HEAD":
        assert raw.endswith(b'{"error":"Method Not Allowed"}')


@pytest.mark.parametrize("path", ["/", "/ingest", "/ingest/", "/ingest/adjust/more", "/x"])
async def test_unknown_path_is_not_found(server: Process, path: str) -> None:
    """A path that was never served is not found, in the same shape."""
    answer = await get(server.port, f"{path}?{query()}")
    assert (answer.status, answer.json) == (404, {"error": "Not Found"})


async def test_failed_write_is_a_500(gateways: Gateways) -> None:
    """A database that refuses the write is a 500, and the retry succeeds when it accepts."""
    gateway = await gateways.start()
    await gateways.execute("ALTER TABLE events RENAME TO elsewhere")
    answer = await gateway.callback()
    assert (answer.status, answer.json) == (500, {"error": "Internal Server Error"})
    await gateways.execute("ALTER TABLE elsewhere RENAME TO events")
    assert (await gateway.callback()).json == WRITTEN


async def test_healthz_depends_on_no_service(gateways: Gateways) -> None:
    """The process is alive, also when neither database nor Redis is."""
    gateway = await gateways.start(DATABASE_URL="postgresql://127.0.0.1:1/x")
    answer = await get(gateway.port, "/healthz")
    assert (answer.status, answer.json) == (200, {"status": "ok"})
    ready = await get(gateway.port, "/readyz")
    assert ready.status == 503
    assert (await gateway.callback()).status == 500


async def test_redis_is_optional(gateways: Gateways) -> None:
    """Without Redis the outcomes are the same, and readiness is green."""
    gateway = await gateways.start(REDIS_URL="redis://127.0.0.1:1/0")
    for receipt in (WRITTEN, DUPLICATE):
        assert (await gateway.callback()).json == receipt
    answer = await get(gateway.port, "/readyz")
    assert answer.status == 200
    assert answer.body.startswith(
        b'{"draining":false,"sink":"answered","claims":"bypassed",'
        b'"buffer":{"events":0,"max_events":5000},"clock":{"state":"right","ahead_s":'
    )


async def test_full_buffer_is_a_503(gateways: Gateways) -> None:
    """A callback that finds no place is refused at once, to be sent again."""
    gateway = await gateways.start(BUFFER_MAX_EVENTS="1", BATCH_MAX_EVENTS="1")
    async with gateways.held_writes():
        first = asyncio.create_task(gateway.callback(user_id="first"))
        while not len(gateway.gateway.buffer):
            await asyncio.sleep(0)
        answer = await gateway.callback(user_id="second")
        assert (answer.status, answer.json) == (503, {"error": "Service Unavailable"})
        assert int(answer.headers["retry-after"]) > 0
    assert (await first).json == WRITTEN
    assert (await gateway.callback(user_id="second")).json == WRITTEN


async def test_too_many_parameters_are_refused(server: Process) -> None:
    """More parameters than any vendor sends are refused for good, once the secret is verified."""
    many = "&a=1" * 4_000
    refused = (400, {"error": "Too many parameters."})
    answer = await server.send(query() + many)
    assert (answer.status, answer.json) == refused
    for body in (many[1:] + "&a=1", "{" + ",".join(f'"a{n}":1' for n in range(4_001)) + "}"):
        answer = await server.post(body.encode())
        assert (answer.status, answer.json) == refused
    assert (await server.send(query(secret="wrong") + many)).status == 401
    assert (await server.send(query(user_id="many") + many[:12_000])).json == WRITTEN


async def test_long_get_is_served(server: Process) -> None:
    """Adjust puts everything into the URL: 60 KB of it are served."""
    target = f"/ingest/adjust?{query(user_agent='A' * 60_000, user_id='long_get')}"
    assert (await get(server.port, target)).json == WRITTEN


async def test_largest_get_is_served(server: Process) -> None:
    """The largest head is served; one more byte closes the connection unanswered, and counts."""
    head_bytes = len(head("GET", f"/ingest/adjust?{query(x='')}")) - len(b"\r\n\r\n")
    room = HEAD_MAX_BYTES - 1 - head_bytes
    assert (await server.callback(x="A" * room)).json in (WRITTEN, DUPLICATE)
    before = await server.metrics()
    for more in (1, 2, 1000, 1_000_000):
        assert await server.callback(x="A" * (room + more)) == UNANSWERED
    after = await server.metrics()
    series = 'flokit_connections_unanswered_total{reason="too_large"}'
    assert after[series] - before.get(series, 0) == 4


async def test_large_body_is_served(server: Process) -> None:
    """A callback may be up to 1 MB."""
    target = f"/ingest/adjust?{query(user_id='large_body')}"
    for body in (b"x=" + b"A" * 1024 * 1024, b'{"x":"' + b"A" * 1024 * 1024 + b'"}'):
        answer = await post(server.port, target, body)
        assert answer.json in (WRITTEN, DUPLICATE)


async def test_too_large_body_is_unanswered(server: Process) -> None:
    """A body above the limit closes the connection: a 413 would be final."""
    target = f"/ingest/adjust?{query()}"
    size = str(BODY_MAX_BYTES + 1)
    request = head("POST", target, headers={"Content-Length": size}) + b"x=A"
    assert await exchange(server.port, request) == UNANSWERED
    chunked = head("POST", target, headers={"Transfer-Encoding": "chunked"})
    assert await exchange(server.port, chunked + b"%x\r\n" % (BODY_MAX_BYTES + 1)) == UNANSWERED
