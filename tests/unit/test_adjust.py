"""Adjust: the outcome of a callback, the fields of its event, and the reasons of a drop."""

from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urlencode

import msgspec
import pytest

from adapters import adjust
from app.access import sent_app_token
from app.event import App, Drop, DropReason, Event
from bench.testbed.callbacks import EVENTS
from tests.adapter_cases import SECRETS, AdapterCases, callback_of, parsed
from tests.vectors import APP, QUERIES, VECTORS

CONFIGURED = App(
    workspace_id="ws_test",
    vendor="adjust",
    app_token=APP,
    events=EVENTS | {"c0p1ed": "purchase"},
    activities={"install": "app_install"},
    keep=("tracker_name", "event_name"),
    stable_id=("transaction_id", "deduplication_id"),
)
# The mapping of the vectors' app.
WORKSPACE_OF_VECTORS = msgspec.structs.replace(CONFIGURED, events=EVENTS, activities={}, keep=())
GOOD = {
    "app_token": "abc123token",
    "event_token": "g3mz3t",
    "activity_kind": "event",
    "created_at": "1750500000",
    "os_name": "ios",
    "country": "us",
    "adid": "1a2b3c",
    "idfa": "8C6CBC0D-5F43-4765-A6E6-84DFF3D24707",
    "gps_adid": "38400000-8cf0-11bd-b23e-10b96e40000d",
    "revenue": "49.99",
    "currency": "USD",
    "user_id": "usr_abc123",
}

Changes = Mapping[str, str | None]
NOTHING: Changes = {}


class TestAdjust(AdapterCases):
    """Adjust keeps the promises of every adapter."""

    app = CONFIGURED
    parameters = GOOD
    another_user: ClassVar[Mapping[str, str]] = {"user_id": "usr_abc124"}
    another_second: ClassVar[Mapping[str, str]] = {"created_at": "1750500001"}
    another_time = another_second
    stable_id: ClassVar[Mapping[str, str]] = {"transaction_id": "GPA.1"}
    revenue: ClassVar[Mapping[str, str]] = {"revenue_float": "4.99", "currency": "EUR"}


def parse(changes: Changes = NOTHING, app: App = CONFIGURED) -> Event | Drop:
    """The outcome of the good callback with these changes; None takes a parameter away."""
    sent = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return parsed(callback_of(urlencode(sent).encode()), app)


def event(changes: Changes = NOTHING, app: App = CONFIGURED) -> Event:
    """The event that the good callback becomes with these changes."""
    found = parse(changes, app)
    assert isinstance(found, Event)
    return found


NONE: dict[str, str | None] = {"event_token": None, "activity_kind": None}
TYPES: list[tuple[dict[str, str | None], str]] = [
    ({"event_token": "bkrfgq"}, "coins"),
    ({"event_token": "bkrfgq", "event": "g3mz3t"}, "coins"),
    ({"event_token": None, "event": "bkrfgq"}, "coins"),
    ({"event_token": "", "event": "bkrfgq"}, "coins"),
    ({"event_token": "{event_token}", "event": "bkrfgq"}, "coins"),
    ({"event_token": "bkrfgq", "activity_kind": "install"}, "coins"),
    (NONE | {"event": "bkrfgq", "activity_kind": "install"}, "coins"),
    (NONE | {"activity_kind": "install"}, "app_install"),
    (NONE | {"event_token": "", "event": "{event}", "activity_kind": "install"}, "app_install"),
]


@pytest.mark.parametrize(("changes", "event_type"), TYPES)
def test_type_comes_from_the_first_name_present(
    changes: dict[str, str | None], event_type: str
) -> None:
    """`event_token`, else Adjust's own `event`, else `activity_kind` determines the type."""
    assert event(changes).event_type == event_type


DROPS: list[tuple[dict[str, str | None], str, str]] = [
    ({"event_token": "zzzzzz"}, "unmapped_event", "zzzzzz"),
    ({"event_token": "G3MZ3T"}, "unmapped_event", "G3MZ3T"),
    ({"event_token": "zzzzzz", "event": "g3mz3t"}, "unmapped_event", "zzzzzz"),
    ({"event_token": "zzzzzz", "event": "{event}"}, "unmapped_event", "zzzzzz"),
    ({"event_token": "zzzzzz", "activity_kind": "install"}, "unmapped_event", "zzzzzz"),
    ({"event_token": "", "event": ""}, "unmapped_event", "event"),
    ({"event_token": "", "activity_kind": "Install"}, "unmapped_event", "Install"),
    (NONE, "unmapped_event", ""),
    (NONE | {"activity_kind": "{activity_kind}"}, "unmapped_event", ""),
    ({"event_token": "zzzzzz", "created_at": "{created_at}"}, "unmapped_event", "zzzzzz"),
    ({"event_token": "zzzzzz", "created_at": "abc"}, "unmapped_event", "zzzzzz"),
    ({"event_token": "{event_token}"}, "unfilled_placeholder", "{event_token}"),
    ({"event_token": None, "event": "{event}"}, "unfilled_placeholder", "{event}"),
    ({"event_token": "{t}", "created_at": "abc"}, "unfilled_placeholder", "{t}"),
    ({"created_at": "{created_at}"}, "unfilled_placeholder", "{created_at}"),
    ({"created_at": None}, "invalid_timestamp", ""),
    ({"created_at": ""}, "invalid_timestamp", ""),
    ({"created_at": " abc "}, "invalid_timestamp", "abc"),
]


@pytest.mark.parametrize(("changes", "reason", "subject"), DROPS)
def test_drop_has_the_first_reason_that_applies(
    changes: dict[str, str | None], reason: str, subject: str
) -> None:
    """Where several things are wrong, the drop has the first reason in the documented order.

    Its subject is the vendor's name of the event, the placeholder, or the text of the time.
    """
    assert parse(changes) == Drop(DropReason(reason), subject)


PLACEHOLDERS = ["{idfa}", "{idfa||gps_adid}", "{FloKit user id partner param}", "{a.b-C_9}", "{ }"]
PLACEHOLDERS += [" {idfa}\n", "{" + "x" * 80 + "}"]
VALUES = ["{}", "{" + "x" * 81 + "}", '{"a":"b"}', "{a:b}", "{idfa", "idfa}", "x{idfa}", "{idfa}x"]
VALUES += ["{{idfa}}", "{a}{b}", "{ä}", "{a\nb}", "{a\tb}", "nullable", "00x", "NA-1"]


@pytest.mark.parametrize("value", ["", " \t", *PLACEHOLDERS])
@pytest.mark.parametrize("name", ["user_id", "os_name", "country", "idfa", "revenue", "event_name"])
def test_absent_values_are_not_stored(name: str, value: str) -> None:
    """A missing key, an empty value and an unfilled placeholder all mean the same: absent."""
    absent = event({name: None})
    assert event({name: value}) == absent
    assert getattr(absent, name, None) is None
    assert name not in absent.properties


@pytest.mark.parametrize("value", VALUES)
def test_value_that_is_no_placeholder_is_kept(value: str) -> None:
    """A JSON object, or any value not wholly a placeholder, is kept as it was sent."""
    assert event({"user_id": value}).user_id == value
    assert event({"tracker_name": value}).properties["tracker_name"] == value


NORMAL: list[tuple[str, str, str | None]] = [
    ("os_name", "iOS", "ios"), ("os_name", "ANDROID", "android"), ("os_name", "iPadOS", "ios"),
    ("os_name", "android-tv", None), ("os_name", "windows", None), ("os_name", "\u0131os", None),
    ("country", "us", "US"), ("country", "De", "DE"), ("country", "usa", "USA"),
    ("country", "u", None), ("country", "usaa", None), ("country", "u1", None),
    ("country", "äö", None), ("country", "ﬁ", None), ("country", "u s", None),
    ("idfa", "8c6cbc0d-5f43", "8C6CBC0D-5F43"), ("gps_adid", "38400000-8CF0", "38400000-8cf0"),
    *[(name, zeros, None) for name in ("idfa", "gps_adid")
      for zeros in ("00000000-0000-0000-0000-000000000000", "0" * 32, "0")],
    ("adid", "1A2b ä", "1A2b ä"), ("user_id", "Üsr 1", "Üsr 1"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sent", "kept"), NORMAL)
def test_identifiers_and_dimensions_have_one_spelling(
    name: str, sent: str, kept: str | None
) -> None:
    """A value that analysts group or join by has one spelling; an invalid one is null."""
    assert getattr(event({name: sent}), name) == kept


@pytest.mark.parametrize("os_name", ["ios", "iOS", "android", "Android"])
def test_os_name_is_kept_only_where_it_has_more_detail(os_name: str) -> None:
    """The name of the system is in `properties` only where it has more detail than the column."""
    assert "os_name" not in event({"os_name": os_name}).properties
    for more in ("ipados", "iPadOS", "android-tv", "roku-os"):
        assert event({"os_name": more}).properties["os_name"] == more


def test_sent_texts_are_kept_unchanged() -> None:
    """`properties` has the texts that were sent, those that the app lists, and nothing else."""
    kept = {
        "revenue": "49.990",
        "revenue_float": "1e3",
        "currency": "usd",
        "activity_kind": "event",
        "environment": "sandbox",
        "tracker_name": "Network1::Christmas 日本",
        "transaction_id": "GPA.1",
        "deduplication_id": "d-1",
    }
    others = {"event_name": "", "campaign_name": "not kept", "secret": SECRETS[1], "A": "1"}
    assert event(kept | others).properties == kept | {"event_token": "g3mz3t"}
    nothing = dict.fromkeys(("revenue", "currency", "activity_kind"))
    assert event(nothing).properties == {"event_token": "g3mz3t"}
    alias = event({"event_token": "{event_token}", "event": "bkrfgq"}).properties
    assert (alias["event_token"], "event" in alias) == ("bkrfgq", False)


def test_body_does_not_choose_the_app() -> None:
    """The app is the one in the URL: the body is the client's."""
    assert sent_app_token(b"event=g3mz3t") is None
    assert sent_app_token(b"app_token=a") == "a"


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
def test_adapter_alone_gives_the_outcome_of_a_vector(vector: dict[str, Any]) -> None:
    """The adapter alone gives the outcome of every real callback."""
    expected = vector["expect"]
    if expected["status"] != 200:
        return  # no adapter sees it
    callback = callback_of(vector["query"].encode())
    if sent_app_token(vector["query"].encode()) != APP:
        assert expected["reason"] == "unknown_app"
        return
    parsed = adjust.parse(callback, WORKSPACE_OF_VECTORS)
    if expected["outcome"] == "dropped":
        assert isinstance(parsed, Drop)
        assert parsed.reason == DropReason(expected["reason"])
        return
    assert isinstance(parsed, Event)
    if relative := vector.get("duplicate_of") or vector.get("distinct_from"):
        first = adjust.parse(callback_of(QUERIES[relative].encode()), WORKSPACE_OF_VECTORS)
        assert isinstance(first, Event)
        assert (parsed.event_id == first.event_id) is ("duplicate_of" in vector)
