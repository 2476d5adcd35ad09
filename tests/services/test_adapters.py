"""Vendors in general: a new one is one file, and every event of any of them can be stored."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import adapters
from adapters import adjust
from app.event import App, Callback, Drop, Event, Outcome
from app.parameters import parse_body, parse_form
from bench.testbed.client import post
from sinks.timescale.sink import TimescaleSink
from tests.events import write_all
from tests.gateways import Gateways

ADAPTER = '''
"""A vendor that sends next to nothing, in JSON."""

from app.event import Callback, Drop, Event, App, event_id


def parse(callback: Callback, app: App) -> Event | Drop:
    if "defect" in callback.parameters:
        raise LookupError("a defect")
    return Event(
        event_id=event_id(
            vendor=app.vendor,
            app_token=app.app_token,
            user=("user_id", callback.parameters.get("user", "")),
            event_type="hello",
            occurred_at=callback.received_at,
            raw_event_id=callback.headers.get("x-event", ""),
            stable_id=None,
        ),
        occurred_at=callback.received_at,
        received_at=callback.received_at,
        workspace_id=app.workspace_id,
        vendor=app.vendor,
        app_token=app.app_token,
        event_type="hello",
        user_id=callback.parameters.get("user"),
    )
'''


@pytest.fixture
def newcomer() -> Iterator[str]:
    """The name of a vendor with an adapter in the folder meanwhile."""
    path = Path(adapters.__file__).parent / "newcomer.py"
    path.write_text(ADAPTER)
    yield "newcomer"
    path.unlink()


async def test_new_vendor_is_one_file(
    gateways: Gateways, connection: asyncpg.Connection, newcomer: str
) -> None:
    """A file in adapters/, a secret and an app in the configuration: its callbacks are rows."""
    (gateways.folder / "workspaces.toml").write_text(
        f'[[workspaces]]\nid = "w"\n[[workspaces.apps]]\nvendor = "{newcomer}"\napp_token = "a"\n'
    )
    gateway = await gateways.start(NEWCOMER_CALLBACK_SECRET="hush")
    body = b'{"user":"somebody"}'
    request = f"/ingest/{newcomer}?secret=hush&app_token=a"
    answer = await post(gateway.port, request, body, "application/json")
    assert answer.body == b'{"received":1,"written":1,"duplicate":0,"dropped":0}'
    row = await connection.fetchrow("SELECT vendor, user_id FROM events")
    assert row is not None
    assert tuple(row) == (newcomer, "somebody")


async def test_broken_adapter_harms_only_its_callback(gateways: Gateways, newcomer: str) -> None:
    """A defect of an adapter is a 500, so that the callback is retried when it is mended."""
    (gateways.folder / "workspaces.toml").write_text(
        f'[[workspaces]]\nid = "w"\n[[workspaces.apps]]\nvendor = "{newcomer}"\napp_token = "a"\n'
    )
    gateway = await gateways.start(NEWCOMER_CALLBACK_SECRET="hush")
    body = b'{"user":"somebody","defect":"yes"}'
    answer = await post(gateway.port, f"/ingest/{newcomer}?secret=hush&app_token=a", body)
    assert (answer.status, answer.json) == (500, {"error": "Internal Server Error"})
    series = 'flokit_callbacks_failed_total{reason="adapter_error",vendor="newcomer",workspace="w"}'
    assert (await gateway.metrics())[series] >= 1


CONFIGURED = App(
    workspace_id="ws_test",
    vendor="adjust",
    app_token="abc123token",
    events={"g3mz3t": "purchase"},
    activities={"install": "app_install"},
    keep=("campaign", "partner_parameters"),
    stable_id=("transaction_id",),
)
NAMES = [
    "event_token", "event", "activity_kind", "created_at", "os_name", "country", "adid", "idfa",
    "gps_adid", "user_id", "revenue", "revenue_float", "currency", "environment", "campaign",
    "partner_parameters", "transaction_id", "ip_address",
]  # fmt: skip
VALUES = (
    st.binary(max_size=30)
    | st.sampled_from([b"g3mz3t", b"install", b"1750500000", b"2025-06-21T10:00:00.1+0200"])
    | st.sampled_from(
        [b"%00", b"\x00", b"%ED%A0%80", b"\\ud800", b"{x}", b"9" * 400, b"A" * 100_000]
    )
    | st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass"))
)
PAIRS = st.lists(st.tuples(st.sampled_from(NAMES) | st.text(max_size=5), VALUES), max_size=20)


def as_form(pairs: list[tuple[str, bytes]]) -> bytes:
    """The pairs as a form, with nothing encoded that is not encoded already."""
    return b"&".join(name.encode("utf-8", "replace") + b"=" + value for name, value in pairs)


def as_json(pairs: list[tuple[str, bytes]]) -> bytes:
    """The pairs as something like JSON."""
    members = (b'"%s":"%s"' % (name.encode("utf-8", "replace"), value) for name, value in pairs)
    return b"{" + b",".join(members) + b"}"


GOOD = [("event_token", b"g3mz3t"), ("created_at", b"1750500000")]


async def test_every_event_can_be_stored(database_url: str) -> None:
    """For any bytes of a vendor, parse returns a Drop, or an Event that the table accepts."""
    sink = TimescaleSink(database_url, commit_timeout_s=5)
    parsed: list[Event] = []

    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
    @example(GOOD, b"")
    @example([*GOOD, ("user_id", b"%00"), ("adid", b"a\x00b"), ("revenue", b"\xff")], b"{")
    @example([*GOOD, ("campaign", b"A" * 1_000_000), ("transaction_id", b"B" * 1_000_000)], b"[]")
    @given(PAIRS.map(lambda pairs: pairs + GOOD) | PAIRS, st.binary(max_size=50))
    def parse(pairs: list[tuple[str, bytes]], body: bytes) -> None:
        for more in (body, as_form(pairs), as_json(pairs)):
            query = parse_form(as_form(pairs))
            in_body = parse_body("application/json" if more[:1] == b"{" else "", more) or {}
            callback = Callback(
                query=query, in_body=partial(dict, in_body), received_at=datetime.now(UTC)
            )
            result = adjust.parse(callback, CONFIGURED)
            assert isinstance(result, Event | Drop)
            if isinstance(result, Event):
                parsed.append(result)

    await asyncio.to_thread(parse)
    assert parsed
    known = list({event.event_id: event for event in parsed}.values())
    for start in range(0, len(known), 100):
        outcomes = await write_all(sink, known[start : start + 100])
        assert set(outcomes) == {Outcome.WRITTEN}
    await sink.close()
