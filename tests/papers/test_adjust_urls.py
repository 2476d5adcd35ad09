"""The page on setting Adjust up: each URL is filled as Adjust fills it, and sent."""

import json
import re
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from app import normalize
from bench.testbed.client import get
from tests.adjust_page import (
    COLUMNS,
    NAMELESS,
    NEEDED,
    PAGE,
    SECTIONS,
    URLS,
    VALUES,
    WHOLE_FILE,
    Url,
    app,
    decoded,
    pieces,
    workspaces,
)
from tests.gateways import SECRET, Gateways, Running
from tests.services.test_vectors import receipt

EVENTS, OTHERS = URLS["Events"], URLS["Installs, sessions and other activities"]
SUBSCRIPTIONS, AD_REVENUE = URLS["Subscriptions"], URLS["Ad revenue"]
SKADNETWORK = URLS["SKAdNetwork"]
KINDS = decoded(SUBSCRIPTIONS.piece)["activities"]
# The values that Adjust fills in for each activity of a URL, and the outcome.
ACTIVITIES: list[tuple[Url, dict[str, str], str]] = [
    (EVENTS, {}, "purchase"),
    (EVENTS, {"event": "f0ob4r"}, "signup"),
    *(
        (OTHERS, {"activity_kind": kind}, event_type)
        for kind, event_type in decoded(OTHERS.piece)["activities"].items()
    ),
    *(
        (SUBSCRIPTIONS, {"activity_kind": kind, "subscription_event_type": subtype}, event_type)
        for (kind, _, subtype), event_type in ((n.partition(":"), KINDS[n]) for n in KINDS)
        if subtype
    ),
    (
        SUBSCRIPTIONS,
        {"activity_kind": "subscription", "subscription_event_type": "price_accepted"},
        "subscription_other",
    ),
    (
        AD_REVENUE,
        {"activity_kind": "ad_revenue", "revenue": "0", "revenue_float": "1.2e-05"},
        "ad_revenue",
    ),
    (SKADNETWORK, {"activity_kind": "sk_install", "event": "", "event_name": ""}, "skan_install"),
    (SKADNETWORK, {"activity_kind": "sk_event"}, "skan_event"),
]
every_activity = pytest.mark.parametrize(
    ("url", "values", "event_type"),
    ACTIVITIES,
    ids=[f"{url.section.split()[0]}-{kept}-{n}" for n, (url, _, kept) in enumerate(ACTIVITIES)],
)


@pytest.fixture
async def gateway(gateways: Gateways) -> Running:
    """A gateway with the pieces of the page."""
    (gateways.folder / "workspaces.toml").write_text(workspaces())
    return await gateways.start()


async def outcome(gateway: Running, target: str) -> str:
    """Send a callback, and return its outcome; a drop with its reason."""
    before = await gateway.metrics()
    answer = await get(gateway.port, target)
    assert answer.status == 200, answer
    [kind] = [kind for kind in ("written", "duplicate", "dropped") if answer.json == receipt(kind)]
    if kind != "dropped":
        return kind
    [reason] = [
        match[1]
        for series, value in (await gateway.metrics()).items()
        if value != before.get(series, 0)
        and (match := re.match(r'flokit_callbacks_dropped_total\{reason="(\w+)"', series))
    ]
    return str(reason)


async def rows(connection: asyncpg.Connection) -> list[dict[str, Any]]:
    """Return all rows by arrival."""
    records = await connection.fetch("SELECT * FROM events ORDER BY received_at")
    return [dict(record) | {"properties": json.loads(record["properties"])} for record in records]


@every_activity
async def test_everything_that_adjust_fills_in_is_stored(
    gateway: Running,
    connection: asyncpg.Connection,
    url: Url,
    values: dict[str, str],
    event_type: str,
) -> None:
    """A filled URL is one row with every parameter of it, and its repeat is a duplicate."""
    assert await outcome(gateway, url.target(values)) == "written"
    assert await outcome(gateway, url.target(values)) == "duplicate"
    [row] = await rows(connection)
    assert (row["event_type"], row["workspace_id"]) == (event_type, "ws_demo")
    assert row["occurred_at"] == datetime(2025, 6, 21, 10, 0, 0, 123000, UTC)
    assert row["properties"] == url.properties(values)
    sent = {"user_id": None, "adid": None, "idfa": None, "gps_adid": None} | url.fill(values)
    sent["country"] = str(sent["country"]).upper()
    assert {name: row[name] for name in COLUMNS} == {name: sent[name] for name in COLUMNS}


@every_activity
async def test_placeholder_without_a_value_is_absent_from_the_row(
    gateway: Running,
    connection: asyncpg.Connection,
    url: Url,
    values: dict[str, str],
    event_type: str,
) -> None:
    """Empty, left out, or unfilled: a placeholder without a value is nowhere in the row."""
    scarce = dict.fromkeys(VALUES.keys() - NEEDED, "") | values
    assert await outcome(gateway, url.target(scarce)) == "written"
    absent = dict.fromkeys(name for name, text in url.fill(scarce).items() if not text)
    assert len(absent) > 5
    assert await outcome(gateway, url.target(scarce, **absent)) == "duplicate"
    unfilled = {name: url.parameters[name] for name in absent}
    assert await outcome(gateway, url.target(scarce, **unfilled)) == "duplicate"
    [row] = await rows(connection)
    assert (row["event_type"], row["properties"]) == (event_type, url.properties(scarce))


@pytest.mark.parametrize(
    ("url", "kind"), [(EVENTS, "event"), (OTHERS, "install"), (AD_REVENUE, "ad_revenue")]
)
async def test_nonce_separates_devices_without_identifiers(
    gateway: Running, connection: asyncpg.Connection, url: Url, kind: str
) -> None:
    """Two devices without an identifier are two rows at one instant; a repeat of either is none."""
    nameless = NAMELESS | {"activity_kind": kind}
    for nonce in ("one", "two"):
        assert await outcome(gateway, url.target(nameless | {"nonce": nonce})) == "written"
    for nonce in ("one", "two"):
        assert await outcome(gateway, url.target(nameless | {"nonce": nonce})) == "duplicate"
    assert len(await rows(connection)) == 2


async def test_seconds_beside_milliseconds_are_another_event(
    gateway: Running, connection: asyncpg.Connection
) -> None:
    """A second URL that sends seconds doubles an activity, as the page warns."""
    assert await outcome(gateway, EVENTS.target()) == "written"
    assert await outcome(gateway, EVENTS.target(created_at="1750500000")) == "written"
    assert len(await rows(connection)) == 2


async def test_purchases_of_one_instant_differ_by_transaction(gateway: Running) -> None:
    """The SDK's transaction ID identifies the event, and a word for nothing does not."""
    for sent, expected in (("t1", "written"), ("t2", "written"), ("t1", "duplicate")):
        assert await outcome(gateway, EVENTS.target(transaction_id=sent)) == expected
    later = {"created_at_milli": "1750500000456"}
    assert await outcome(gateway, EVENTS.target(later, transaction_id="t1")) == "duplicate"
    for moment in ("1750500001000", "1750500002000"):
        target = EVENTS.target({"created_at_milli": moment}, transaction_id="null")
        assert await outcome(gateway, target) == "written"


async def test_subscription_transaction_has_several_events(gateway: Running) -> None:
    """A transaction has one event of each kind, at any time; without one the time counts."""

    def of(kind: str, moment: str = "1750500000123", transaction: str = "1") -> str:
        return SUBSCRIPTIONS.target(
            {
                "activity_kind": "subscription",
                "subscription_event_type": kind,
                "created_at_milli": moment,
                "subscription_transaction_id": transaction,
            }
        )

    for target, expected in (
        (of("activation"), "written"),
        (of("cancellation"), "written"),
        (of("activation", "1750600000000"), "duplicate"),
        (of("renewal", transaction="2"), "written"),
        (of("renewal", "1753092000000", transaction="3"), "written"),
        (of("grace_period", transaction=""), "written"),
        (of("grace_period", "1750500001000", transaction=""), "written"),
        (of("grace_period", transaction=""), "duplicate"),
        # Both are `subscription_other`, at one instant.
        (of("billing_retry", transaction=""), "written"),
    ):
        assert await outcome(gateway, target) == expected


async def test_postback_is_identified_by_its_transaction(
    gateway: Running, connection: asyncpg.Connection
) -> None:
    """A postback repeated with another time and nonce is a duplicate; so are its events."""

    def of(kind: str, token: str = "", transaction: str = "1", **values: str) -> str:
        known = {"activity_kind": kind, "event": token, "sk_transaction_id": transaction}
        return SKADNETWORK.target(known | values)

    again = {"created_at_milli": "1750600000000", "sk_ts": "1750599990", "nonce": "another"}
    for target, expected in (
        (of("sk_install"), "written"),
        (of("sk_install", **again), "duplicate"),
        (of("sk_install", transaction="2"), "written"),
        (of("sk_event", "g3mz3t"), "written"),
        (of("sk_event", "f0ob4r"), "written"),
        (of("sk_event", "g3mz3t", **again), "duplicate"),
    ):
        assert await outcome(gateway, target) == expected
    assert {row["event_type"] for row in await rows(connection)} == {"skan_install", "skan_event"}


MISTAKES: list[tuple[str, Url, dict[str, str | None], str]] = [
    ("no app", EVENTS, {"app_token": "mistyped"}, "unknown_app"),
    ("a name of the gateway's", EVENTS, {"event_token": "{event_token}"}, "unfilled_placeholder"),
    ("an unknown time", EVENTS, {"created_at": "{created}"}, "unfilled_placeholder"),
    ("no mapping", EVENTS, {"event_token": "a1b2c3"}, "unmapped_event"),
    ("no token", EVENTS, {"event_token": ""}, "unmapped_event"),
    ("another name", EVENTS, {"created_at": None, "timestamp": "1750500000"}, "invalid_timestamp"),
    ("not ISO 8601", EVENTS, {"created_at": "2025-06-21T10:00UTC"}, "invalid_timestamp"),
    ("on purpose", OTHERS, {"activity_kind": "click"}, "ignored"),
]


@pytest.mark.parametrize(
    ("url", "sent", "reason"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES]
)
async def test_mistake_has_the_symptom_of_the_page(
    gateway: Running, url: Url, sent: dict[str, str | None], reason: str
) -> None:
    """A URL that is set up wrongly is dropped for the reason on the page."""
    assert await outcome(gateway, url.target({}, **sent)) == reason
    assert f"`{reason}`" in SECTIONS["Troubleshooting"] or reason == "ignored"


async def test_omitted_parameters_are_stored_nowhere(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """A parameter in the page's `omit`, and its column, is not in the row, which is found again."""
    [omit] = [piece for piece in pieces(PAGE) if piece.startswith("omit")]
    piece = omit.replace("]", ', "idfa"]') + EVENTS.piece
    (gateways.folder / "workspaces.toml").write_text(
        '[[workspaces]]\nid = "ws_demo"\n' + app(piece, EVENTS.app_token)
    )
    gateway = await gateways.start()
    target = EVENTS.target({}, ip_address="192.0.2.7", user_agent="Mozilla/5.0")
    for expected in ("written", "duplicate"):
        assert await outcome(gateway, target) == expected
    [row] = await rows(connection)
    assert (row["idfa"], row["properties"]) == (None, EVENTS.properties())


async def test_whole_file_takes_every_url(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """The file at the end of the page has every piece, and takes each URL of it for one app."""
    whole = decoded(WHOLE_FILE.partition('app_token = "abc123token"')[2])
    for piece in map(decoded, pieces(PAGE.partition("## The whole file")[0])):
        for name, said in piece.items():
            if isinstance(said, dict):
                assert said.items() <= whole[name].items()
            else:
                assert all(entry in whole[name] for entry in said), name
    (gateways.folder / "workspaces.toml").write_text(WHOLE_FILE)
    gateway = await gateways.start()
    for url, values, _ in ACTIVITIES:
        for expected in ("written", "duplicate"):
            target = url.target(values, app_token="abc123token")
            assert await outcome(gateway, target) == expected
    told = [row["event_type"] for row in await rows(connection)]
    assert told == [event_type for _, _, event_type in ACTIVITIES]


async def test_workspace_accepts_only_its_own_secrets(gateways: Gateways) -> None:
    """The common secret is refused; the old and the new one are accepted, also in a header."""
    (gateways.folder / "workspaces.toml").write_text(workspaces())
    gateway = await gateways.start(
        ADJUST_CALLBACK_SECRET="common", ADJUST_CALLBACK_SECRET__WS_DEMO=f"{SECRET},old"
    )
    for sent, status in (("common", 401), ("old", 200), (SECRET, 200)):
        assert (await get(gateway.port, EVENTS.target(secret=sent))).status == status
    silent = EVENTS.target(secret=None)
    for header, status in (("SECRET", 200), ("Bearer SECRET", 200), ("common", 401)):
        headers = {"Authorization": header.replace("SECRET", SECRET)}
        assert f"`Authorization: {header}`" in PAGE or header == "common"
        assert (await get(gateway.port, silent, headers=headers)).status == status
    assert (await get(gateway.port, silent, headers={"X-Flokit-Secret": SECRET})).status == 200
    crossed = EVENTS.target(secret="common")
    assert (await get(gateway.port, crossed, headers={"X-Flokit-Secret": SECRET})).status == 401


def test_placeholders_of_the_page_have_values() -> None:
    """Every placeholder of the page's URLs is filled by these tests, and no value is left over."""
    named = {
        name for url in URLS.values() for name in re.findall(r"\{(\w+)\}", str(url.parameters))
    }
    assert named == VALUES.keys()
    assert len(URLS) == 5


def test_words_for_nothing_are_those_of_the_page() -> None:
    """The page lists exactly the words for an absent value."""
    [block] = re.findall(r"```\n(.*?)\n```", SECTIONS["Null-like values"], re.DOTALL)
    assert set(block.replace("object object", "object_object").split()) == {
        word.replace(" ", "_") for word in normalize.NULL_WORDS
    }
