"""Dropped callbacks over HTTP: in quarantine before the answer, without secrets, within bounds."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from app.dropped import Dropped, decode_event
from app.drops import TICK_S, usage_pause_s
from app.event import DropReason
from app.parameters import FORM
from app.telemetry.metrics import KEPT
from bench.testbed.client import Answer, exchange, get, post
from bench.testbed.process import PATIENCE_S
from tests.gateways import SECRET, Gateways, Running, query
from tests.loop import longest_step_s

DROPPED = b'{"received":1,"written":0,"duplicate":0,"dropped":1}'
SKIPPED = "flokit_quarantine_skipped_total"


async def rows(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """Every row of quarantine, in order."""
    return await connection.fetch("SELECT * FROM dropped ORDER BY drop_id")


@pytest.mark.parametrize(
    ("changes", "reason", "subject"),
    [
        ({"event_token": "zzzzzz"}, "unmapped_event", "zzzzzz"),
        ({"app_token": "nowhere"}, "unknown_app", "nowhere"),
        ({"event_token": "{event_token}"}, "unfilled_placeholder", "{event_token}"),
        ({"created_at": "{created_at}"}, "unfilled_placeholder", "{created_at}"),
        ({"created_at": "yesterday"}, "invalid_timestamp", "yesterday"),
    ],
)
async def test_drop_is_in_quarantine_before_it_is_answered(
    gateways: Gateways, connection: asyncpg.Connection,
    changes: dict[str, str], reason: str, subject: str,
) -> None:  # fmt: skip
    """A dropped callback has one row, with the bytes that were sent but for the secret."""
    gateway = await gateways.start()
    answer = await gateway.callback(**changes)
    assert (answer.status, answer.body) == (200, DROPPED)
    [row] = await rows(connection)
    assert (row["reason"], row["subject"], row["method"]) == (reason, subject, "GET")
    assert (row["vendor"], row["app_token"]) == ("adjust", changes.get("app_token", "abc123token"))
    assert row["workspace_id"] == ("" if reason == "unknown_app" else "ws_test")
    assert row["query"].decode() == query(**changes).replace(f"secret={SECRET}&", "")
    assert (row["body"], row["event"]) == (b"", None)
    numbers = await gateway.metrics()
    assert numbers[f'flokit_quarantine_rows_total{{reason="{reason}"}}'] >= 1


async def test_ignored_callback_is_not_kept(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """A callback that the app ignores leaves no row, and is counted as ignored."""
    (gateways.folder / "workspaces.toml").write_text(
        '[[workspaces]]\nid = "ws_test"\n[[workspaces.apps]]\nvendor = "adjust"\n'
        'app_token = "abc123token"\nevents = { g3mz3t = "purchase" }\nignore = ["click"]\n'
    )
    gateway = await gateways.start()
    answer = await gateway.callback(event_token="", activity_kind="click")
    assert answer.body == DROPPED
    assert await rows(connection) == []


@pytest.mark.parametrize(
    ("body", "content_type", "more"),
    [(b"[1, 2]", "application/json", {}), (b"x", "text/plain", {})],
)
async def test_unreadable_body_is_kept(
    gateways: Gateways, connection: asyncpg.Connection,
    body: bytes, content_type: str, more: dict[str, str],
) -> None:  # fmt: skip
    """A verified body that cannot be read is answered 400, and is in quarantine."""
    gateway = await gateways.start()
    answer = await gateway.post(body, content_type, **more)
    assert (answer.status, answer.body) == (400, b'{"error":"Malformed body."}')
    [row] = await rows(connection)
    assert (row["reason"], row["subject"]) == ("malformed", "malformed_body")
    assert (row["method"], row["body"], row["content_type"]) == ("POST", body, content_type)


@pytest.mark.parametrize("body", ["x=1", "["])
async def test_content_type_that_is_no_text_is_kept_as_far_as_it_is_one(
    gateways: Gateways, connection: asyncpg.Connection, body: str
) -> None:
    """Bytes that no text has cost neither the drop nor its content type."""
    gateway = await gateways.start()
    head = f"POST /ingest/adjust?{query(event_token='zzzzzz')} HTTP/1.1\r\nHost: h\r\n"
    length = f"Content-Length: {len(body)}\r\n\r\n{body}"
    content_type = b"Content-Type: application/x-www-form-urlencoded; a=\xff\r\n"
    answer = await exchange(gateway.port, head.encode() + content_type + length.encode())
    assert answer.body == DROPPED
    [row] = await rows(connection)
    assert row["content_type"] == "application/x-www-form-urlencoded; a="
    assert row["body"] == body.encode()


async def test_unknown_app_has_the_token_that_the_gateway_searched(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """A name that only decodes to `app_token` counts for nothing, in the subject too."""
    gateway = await gateways.start()
    await gateway.send(f"secret={SECRET}&app%5Ftoken=abc123token&app_token=nowhere")
    [row] = await rows(connection)
    assert (row["reason"], row["subject"], row["app_token"]) == (
        "unknown_app",
        "nowhere",
        "nowhere",
    )


async def test_compressed_body_is_not_kept(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """Nobody can redact it: the rest of the callback is in quarantine."""
    gateway = await gateways.start()
    body = gzip.compress(query(event_token="zzzzzz").encode())
    head = (
        f"POST /ingest/adjust?{query()} HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    assert (await exchange(gateway.port, head.encode() + body)).status == 400
    [row] = await rows(connection)
    assert (row["reason"], row["subject"], row["body"]) == ("malformed", "malformed_body", b"")
    assert row["query"].decode() == query().replace(f"secret={SECRET}&", "")


async def test_too_many_parameters_are_kept(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """More parameters than any vendor sends are answered 400, and are in quarantine."""
    gateway = await gateways.start()
    answer = await gateway.send(query() + "&" + "&".join(f"p{n}=1" for n in range(4_000)))
    assert (answer.status, answer.body) == (400, b'{"error":"Too many parameters."}')
    [row] = await rows(connection)
    assert (row["reason"], row["subject"]) == ("malformed", "too_many_parameters")


async def test_refused_event_is_kept_encoded(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """An event that the database refuses is in quarantine as it was encoded."""
    await connection.execute("ALTER TABLE events ADD CHECK (user_id <> 'poison')")
    gateway = await gateways.start()
    answer = await gateway.callback(user_id="poison")
    assert answer.body == DROPPED
    [row] = await rows(connection)
    assert (row["reason"], row["subject"], row["query"]) == ("refused", "purchase", b"")
    event = decode_event(row["event"])
    assert (event.user_id, event.received_at) == ("poison", row["received_at"])
    assert event.event_type == "purchase"
    numbers = await gateway.metrics()
    series = 'flokit_callbacks_dropped_total{reason="refused",vendor="adjust",workspace="ws_test"}'
    assert numbers[series] >= 1


async def test_refused_event_is_kept_without_secrets(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """A secret in another parameter of a refused event is not in quarantine."""
    await connection.execute("ALTER TABLE events ADD CHECK (user_id <> 'poison')")
    other = "the-other-secret"
    gateway = await gateways.start(ADJUST_CALLBACK_SECRET=f"{SECRET},{other}")
    sent = {"label": other, "campaign": f"with+{other}", other: "x", "adid": other, "network": "n"}
    assert (await gateway.callback(user_id="poison", **sent)).body == DROPPED
    [row] = await rows(connection)
    event = decode_event(row["event"])
    assert (event.adid, event.user_id) == (None, "poison")
    assert set(event.properties) == {"activity_kind", "event_token", "network"}


@pytest.mark.parametrize("body", [b"", b'{"note": {"nested": "s3cr3t"}, "kept": "1"}'])
async def test_secret_under_another_name_is_not_stored(
    gateways: Gateways, connection: asyncpg.Connection, body: bytes
) -> None:
    """A parameter of an event that holds the secret, in any spelling, is left out."""
    gateway = await gateways.start()
    sent = query(label=SECRET, note=f"my+%73{SECRET[1:]}", other="kept")
    answer = await post(gateway.port, f"/ingest/adjust?{sent}", body, "application/json")
    assert b'"written":1' in answer.body
    properties = await connection.fetchval("SELECT properties FROM events")
    assert SECRET not in properties
    assert "kept" in properties


async def test_omitted_parameter_is_not_kept(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """What the app omits is not in quarantine either."""
    (gateways.folder / "workspaces.toml").write_text(
        '[[workspaces]]\nid = "ws_test"\n[[workspaces.apps]]\nvendor = "adjust"\n'
        'app_token = "abc123token"\nomit = ["ip_address"]\nevents = { g3mz3t = "purchase" }\n'
    )
    gateway = await gateways.start()
    await gateway.callback(event_token="zzzzzz", ip_address="203.0.113.9", label="kept")
    [row] = await rows(connection)
    assert b"203.0.113.9" not in row["query"]
    assert b"label=kept" in row["query"]


async def test_failing_quarantine_makes_a_drop_an_error(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """While quarantine fails a drop is answered 500, and events are written as before."""
    gateway = await gateways.start()
    await connection.execute("ALTER TABLE dropped RENAME TO away")
    series = (
        'flokit_callbacks_failed_total{reason="quarantine_failed",vendor="adjust",'
        'workspace="ws_test"}'
    )
    before = (await gateway.metrics())[series]
    assert (await gateway.callback(event_token="zzzzzz")).status == 500
    assert (await gateway.callback()).status == 200
    assert (await gateway.metrics())[series] == before + 1
    await connection.execute("ALTER TABLE away RENAME TO dropped")
    assert (await gateway.callback(event_token="zzzzzz")).body == DROPPED
    assert len(await rows(connection)) == 1


async def until_in_flight(gateway: Running) -> None:
    """Return when a callback is being handled."""
    async with asyncio.timeout(PATIENCE_S):
        while (await gateway.metrics())["flokit_callbacks_in_flight"] < 1:
            await asyncio.sleep(0.01)


async def test_no_event_waits_for_a_drop(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """While quarantine is locked, drops wait, and events are written."""
    gateway = await gateways.start()
    async with connection.transaction():
        await connection.execute("LOCK TABLE dropped IN ACCESS EXCLUSIVE MODE")
        drop = asyncio.create_task(gateway.callback(event_token="zzzzzz"))
        await until_in_flight(gateway)
        assert (await gateway.callback()).status == 200
        assert not drop.done()
    assert (await drop).body == DROPPED


async def skips(gateway: Running, why: str) -> float:
    """The number of drops that had no place, for one cause."""
    return (await gateway.metrics())[f'{SKIPPED}{{why="{why}"}}']


async def test_without_quarantine_drops_are_counted_as_skipped(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """With QUARANTINE_D=0 a drop is answered at once, even if the tables are not there."""
    gateway = await gateways.start(QUARANTINE_D="0")
    await connection.execute("ALTER TABLE dropped RENAME TO away")
    before = await skips(gateway, "off")
    assert (await gateway.callback(event_token="zzzzzz")).body == DROPPED
    assert await skips(gateway, "off") == before + 1
    await connection.execute("ALTER TABLE away RENAME TO dropped")
    assert await rows(connection) == []


async def test_flood_is_kept_to_its_share(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """One token's flood fills a quarter; another token's single drop is kept."""
    gateway = await gateways.start(QUARANTINE_MAX_MB="1")
    before = await skips(gateway, "account_share")
    filler = "x" * 40_000
    for _ in range(10):
        assert (await gateway.callback(event_token="flood", label=filler)).body == DROPPED
    kept = len(await rows(connection))
    assert 3 <= kept <= 6  # a quarter of a megabyte, by an upper estimate of each
    assert await skips(gateway, "account_share") == before + 10 - kept
    assert (await gateway.callback(event_token="single")).body == DROPPED
    assert (await rows(connection))[-1]["subject"] == "single"


async def test_flood_of_other_processes_counts_in_a_small_quarantine(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """The quarter of a small quarantine is less than a megabyte, and holds for all processes."""
    await connection.execute(
        "INSERT INTO quarantine_usage VALUES"
        " ('other', current_date, 'ws_test', 'unmapped_event', 'flood', 1, 249000)"
    )
    gateway = await gateways.start(QUARANTINE_MAX_MB="1")
    async with asyncio.timeout(PATIENCE_S):
        while (await gateway.metrics())["flokit_quarantine_bytes"] != 249_000:
            await asyncio.sleep(0.02)
    assert (await gateway.callback(event_token="flood", label="x" * 2_000)).body == DROPPED
    assert await rows(connection) == []
    assert (await gateway.callback(event_token="single", label="x" * 2_000)).body == DROPPED
    assert len(await rows(connection)) == 1


Send = Callable[[Running], Awaitable[Answer]]


def sends(query: str) -> Send:
    """Send a query that is not verified."""
    return lambda gateway: gateway.send(query)


@pytest.mark.parametrize(
    ("send", "status", "trace"),
    [
        (sends("app_token=abc123token"), 401, ("wrong_secret", "adjust", "no secret")),
        (sends("secret=%7Bsecret%7D"), 401, ("wrong_secret", "adjust", "placeholder")),
        (lambda g: get(g.port, "/ingest/nobody?secret=s3cr3t"), 404, ("unknown_vendor", "", "")),
        (lambda g: get(g.port, "/elsewhere"), 404, ("unknown_path", "", "")),
        (lambda g: post(g.port, "/healthz", b"", None), 405, ("method_not_allowed", "", "")),
    ],
)
async def test_rejected_request_leaves_a_trace(
    gateways: Gateways, connection: asyncpg.Connection,
    send: Send, status: int, trace: tuple[str, str, str],
) -> None:  # fmt: skip
    """A request that is turned away has a row in `rejected`, soon, and without any value."""
    gateway = await gateways.start()
    assert (await send(gateway)).status == status
    found: list[Any] = []
    async with asyncio.timeout(PATIENCE_S):
        while not found:
            found = await connection.fetch("SELECT * FROM rejected")
            await asyncio.sleep(0.02)
    [row] = found
    reason, vendor, hint = trace
    assert (row["reason"], row["vendor"], row["address"]) == (reason, vendor, "127.0.0.1")
    assert hint in row["hint"]


async def test_traces_of_rejected_requests_are_capped(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """Of many rejected requests only a few a second leave a trace."""
    gateway = await gateways.start()
    await asyncio.gather(*(get(gateway.port, "/elsewhere") for _ in range(60)))
    count = 0
    async with asyncio.timeout(PATIENCE_S):
        while not count:
            count = await connection.fetchval("SELECT count(*) FROM rejected")
            await asyncio.sleep(0.02)
    assert count <= 5


def test_slow_reads_of_the_usage_are_rare() -> None:
    """They take a twentieth of the time, and are ten seconds apart at most."""
    assert usage_pause_s(0.01) < TICK_S
    assert usage_pause_s(0.2) == pytest.approx(4)
    assert usage_pause_s(3) == 10


def test_every_reason_but_ignored_is_exposed_from_the_start() -> None:
    """The series of kept drops are there at 0 for each reason that is kept."""
    assert set(KEPT) == {reason.value for reason in DropReason} - {"ignored"}


async def test_closed_gateway_has_kept_its_drops(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """Drops that wait when the gateway stops are kept and answered."""
    gateway = await gateways.start()
    async with connection.transaction():
        await connection.execute("LOCK TABLE dropped IN ACCESS EXCLUSIVE MODE")
        drop = asyncio.create_task(gateway.callback(event_token="zzzzzz"))
        await until_in_flight(gateway)
        stopping = asyncio.create_task(gateway.stop())
    assert (await drop).body == DROPPED
    await stopping
    assert len(await rows(connection)) == 1


@pytest.mark.no_cover
async def test_long_drop_does_not_hold_the_loop(gateways: Gateways) -> None:
    """A callback full of escapes, which is slow to redact, is redacted beside the loop."""
    gateway = await gateways.start()
    body = b"&".join(b"%%2541%d=%%25%%41" % number for number in range(3_000))
    dropped = Dropped(
        received_at=datetime.now(UTC), vendor="adjust", workspace_id="ws_test", app_token="a",
        reason=DropReason.UNMAPPED_EVENT, subject="x", method="POST", content_type=FORM, body=body,
    )  # fmt: skip
    keep = gateway.gateway.drops.keep
    assert min([await longest_step_s(keep(dropped)) for _ in range(5)]) < 0.02
