"""Vendors in general: a new one is one file, and every event of any of them can be stored."""

import asyncio
import itertools
import time
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
from app.ingest import DROPPED
from app.parameters import parse_body, parse_form
from bench.testbed.client import get, post
from bench.testbed.process import PATIENCE_S, POLL_S
from sinks.timescale.sink import TimescaleSink
from tests.events import write_all
from tests.gateways import SECRET, Gateways, is_without_secret

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


OPTIONAL = '''
"""A vendor with options, that sends nothing twice."""

import msgspec

from adapters import _url
from app.event import App, Callback, Drop, Event, Retries

RETRIES = Retries.NEVER


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    country: str


def parse(callback: Callback, app: App) -> Event | Drop:
    event = _url.parse(callback, app, _url.Names())
    if isinstance(event, Event) and isinstance(app.options, Options):
        return msgspec.structs.replace(event, country=app.options.country)
    return event
'''
DAY_S = 24 * 60 * 60


@pytest.fixture
def optional(gateways: Gateways) -> Iterator[str]:
    """The name of a vendor with optional names, and an app of its own in the workspaces file."""
    path = Path(adapters.__file__).parent / "optional.py"
    path.write_text(OPTIONAL)
    write_app(gateways, "optional", "DE")
    yield "optional"
    path.unlink()


def write_app(gateways: Gateways, vendor: str, country: str) -> None:
    """Write a workspaces file with one app of a vendor, and one of Adjust."""
    apps = "".join(
        f'[[workspaces.apps]]\nvendor = "{name}"\napp_token = "a"\nevents = {{ e = "hello" }}\n'
        for name in ("adjust", vendor)
    )
    (gateways.folder / "workspaces.toml").write_text(
        f'[[workspaces]]\nid = "w"\n{apps}[workspaces.apps.options]\ncountry = "{country}"\n'
    )


async def test_options_of_an_app_reach_its_vendor(
    gateways: Gateways, connection: asyncpg.Connection, optional: str
) -> None:
    """The options of the app are those of the file, at the start and after a reload."""
    gateway = await gateways.start(OPTIONAL_CALLBACK_SECRET="hush")

    async def country(user: str) -> str:
        request = f"/ingest/{optional}?secret=hush&app_token=a&event_token=e&user_id={user}"
        answer = await get(gateway.port, f"{request}&created_at={time.time():.0f}")
        assert b'"written":1' in answer.body
        return str(await connection.fetchval("SELECT country FROM events WHERE user_id = $1", user))

    assert await country("first") == "DE"
    write_app(gateways, optional, "FR")
    async with asyncio.timeout(PATIENCE_S):
        for number in itertools.count():
            if await country(f"u{number}") == "FR":
                return
            await asyncio.sleep(POLL_S)


async def test_wrong_clock_costs_no_event_of_a_vendor_that_never_tries_again(
    gateways: Gateways, connection: asyncpg.Connection, optional: str
) -> None:
    """What is a 503 for a vendor that tries again goes to quarantine for one that does not."""
    slow = TimescaleSink(
        gateways.database_url, commit_timeout_s=5, now=lambda: time.time() - 2 * DAY_S
    )
    gateways.now = lambda: datetime.fromtimestamp(time.time() - 2 * DAY_S, UTC)
    gateway = await gateways.start(sink=slow, OPTIONAL_CALLBACK_SECRET=SECRET)
    await slow.ping()
    parameters = f"secret={SECRET}&app_token=a&event_token=e&created_at={time.time():.0f}"
    answer = await get(gateway.port, f"/ingest/adjust?{parameters}")
    assert answer.status == 503
    answer = await get(gateway.port, f"/ingest/{optional}?{parameters}")
    assert answer.body == DROPPED
    rows = await connection.fetch("SELECT vendor, reason FROM dropped")
    assert [tuple(row) for row in rows] == [(optional, "invalid_timestamp")]


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
    st.binary(max_size=30).filter(is_without_secret)
    | st.sampled_from([b"g3mz3t", b"install", b"1750500000", b"2025-06-21T10:00:00.1+0200"])
    | st.sampled_from(
        [b"%00", b"\x00", b"%ED%A0%80", b"\\ud800", b"{x}", b"9" * 400, b"A" * 100_000]
    )
    | st.text(max_size=20)
    .filter(is_without_secret)
    .map(lambda text: text.encode("utf-8", "surrogatepass"))
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
    @given(
        PAIRS.map(lambda pairs: pairs + GOOD) | PAIRS,
        st.binary(max_size=50).filter(is_without_secret),
    )
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
