"""AppsFlyer: messages of the Push API, their events, and the reasons of a drop."""

import json
from collections.abc import Mapping
from typing import ClassVar

import msgspec
import pytest

from adapters import appsflyer
from app.event import App, Callback, Drop, DropReason, Event
from tests.adapter_cases import VENDORS, AdapterCases, callback_of, in_json_body, parsed
from tests.vectors import APP, vectors_of

CONFIGURED = App(
    workspace_id="ws_test",
    vendor="appsflyer",
    app_token=APP,
    events={"af_purchase": "purchase", "Level Up": "level_up", "install": "app_install"},
    activities={"re-engagement": "app_reengagement"},
)
# From AppsFlyer's list of fields, with values of a real message.
GOOD = {
    "api_version": "2.0",
    "app_id": "com.example.app",
    "appsflyer_id": "1698811503838-6471005703857226000",
    "advertising_id": "D3CD52F1-0CA5-488C-85AB-7AF988744F30",
    "campaign": "Android_T2_Pur",
    "country_code": "DE",
    "customer_user_id": "usr_af_1",
    "event_name": "af_purchase",
    "event_revenue": "9.99",
    "event_revenue_currency": "EUR",
    "event_time": "2023-11-03 00:49:04.897",
    "event_type": "in-app-event",
    "event_value": '{"af_revenue":"9.99","af_currency":"EUR","af_content_id":"c 1"}',
    "is_primary_attribution": "true",
    "platform": "android",
}
VENDOR = VENDORS["appsflyer"]
ZEROS = "00000000-0000-0000-0000-000000000000"

Changes = Mapping[str, object]
NOTHING: Changes = {}


def in_json(fields: Mapping[str, object]) -> Callback:
    """The callback of a POST, as AppsFlyer sends it by default."""
    body = json.dumps(fields, separators=(",", ":"))
    query = f"app_token={APP}".encode()
    return callback_of(query, body.encode(), "application/json", VENDOR)


class TestGet(AdapterCases):
    """AppsFlyer keeps the promises of every adapter in a GET."""

    app = CONFIGURED
    parameters = GOOD
    another_user: ClassVar[Mapping[str, str]] = {"customer_user_id": "usr_af_2"}
    another_second: ClassVar[Mapping[str, str]] = {"event_time": "2023-11-03 00:49:05.897"}
    another_time = another_second
    stable_id: ClassVar[Mapping[str, str]] = {"event_value": '{"af_order_id":"o1"}'}
    revenue: ClassVar[Mapping[str, str]] = {
        "event_revenue": "4.99", "event_revenue_currency": "EUR",
    }  # fmt: skip
    users = (
        "customer_user_id", "appsflyer_id", "advertising_id", "idfa", "idfv", "oaid", "amazon_aid",
        "android_id",
    )  # fmt: skip
    others = ("ip", "user_agent", "imei")
    placeholder = ""


class TestPost(TestGet):
    """AppsFlyer keeps the promises of every adapter in a POST of JSON."""

    def callback(self, parameters: Mapping[str, str]) -> Callback:
        """The callback that brings these parameters."""
        return in_json_body(parameters, self.adapter)


def parse(changes: Changes = NOTHING, app: App = CONFIGURED) -> Event | Drop:
    """The outcome of the good message with these changes; None takes a field away."""
    fields = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    return parsed(in_json(fields), app)


def event(changes: Changes = NOTHING, app: App = CONFIGURED) -> Event:
    """The event that the good message becomes with these changes."""
    found = parse(changes, app)
    assert isinstance(found, Event)
    return found


def test_columns_have_their_canonical_values() -> None:
    """Each column holds the field of its meaning; all other fields are properties as sent."""
    found = event({"idfa": "8c6cbc0d-5f43-4765-a6e6-84dff3d24707"})
    assert (found.user_id, found.adid) == ("usr_af_1", GOOD["appsflyer_id"])
    assert found.gps_adid == GOOD["advertising_id"].lower()
    assert found.idfa == "8C6CBC0D-5F43-4765-A6E6-84DFF3D24707"
    assert (found.os_name, found.country, found.event_type) == ("android", "DE", "purchase")
    assert found.occurred_at.isoformat() == "2023-11-03T00:49:04.897000+00:00"
    in_columns = {
        "appsflyer_id", "advertising_id", "country_code", "customer_user_id", "event_time",
        "platform",
    }  # fmt: skip
    assert found.properties == {
        **{name: value for name, value in GOOD.items() if name not in in_columns},
        "revenue_float": "9.99",
        "currency": "EUR",
    }


def test_get_and_post_are_one_event() -> None:
    """The same fields in a URL and in a body are the same event, column for column."""
    in_url = appsflyer.parse(TestGet().callback({"app_token": APP, **GOOD}), CONFIGURED)
    assert in_url == event()


TYPES: list[tuple[Changes, str]] = [
    ({"event_name": "Level Up"}, "level_up"),
    ({"event_name": " Level Up "}, "level_up"),
    ({"event_name": "install", "event_type": "organic-install"}, "app_install"),
    ({"event_name": "other", "event_type": "re-engagement"}, "app_reengagement"),
    ({"event_name": None, "event_type": "re-engagement"}, "app_reengagement"),
    ({"event_name": "re-engagement", "event_type": None}, "app_reengagement"),
    ({"event_name": "install", "event_type": "re-engagement"}, "app_install"),
]


@pytest.mark.parametrize(("changes", "event_type"), TYPES)
def test_type_comes_from_the_name_then_the_kind(changes: Changes, event_type: str) -> None:
    """`event_name` is looked up in `events`, then `event_type` in `activities`."""
    assert event(changes).event_type == event_type


DROPS: list[tuple[Changes, str, str]] = [
    ({"event_name": "other"}, "unmapped_event", "other"),
    ({"event_name": "level up"}, "unmapped_event", "level up"),
    ({"event_name": None, "event_type": None}, "unmapped_event", ""),
    ({"event_name": None}, "unmapped_event", "in-app-event"),
    ({"event_name": "other", "event_time": None}, "unmapped_event", "other"),
    ({"event_name": {"a": 1}}, "unmapped_event", '{"a":1}'),
    ({"event_time": None}, "invalid_timestamp", ""),
    ({"event_time": "2023-11-03"}, "invalid_timestamp", "2023-11-03"),
    ({"event_time": ["2023-11-03 00:49:04"]}, "invalid_timestamp", '["2023-11-03 00:49:04"]'),
    ({"event_time": True}, "invalid_timestamp", "true"),
    ({"event_time": "2099-01-01 00:00:00"}, "invalid_timestamp", "2099-01-01 00:00:00"),
]


@pytest.mark.parametrize(("changes", "reason", "subject"), DROPS)
def test_drop_has_its_reason(changes: Changes, reason: str, subject: str) -> None:
    """A message that is no event is dropped for the first reason that applies, with its subject."""
    assert parse(changes) == Drop(DropReason(reason), subject)


def test_ignored_names_are_dropped_on_purpose() -> None:
    """An event name or type in the app's `ignore` is dropped as ignored."""
    app = msgspec.structs.replace(CONFIGURED, ignore=("organic-install", "af_app_opened"))
    assert parse({"event_name": "af_app_opened"}, app) == Drop(DropReason.IGNORED, "af_app_opened")
    organic: Changes = {"event_name": "install", "event_type": "organic-install"}
    assert parse(organic, app) == Drop(DropReason.IGNORED, "organic-install")


TIMES: list[tuple[Changes, str]] = [
    ({}, "2023-11-03T00:49:04.897000+00:00"),
    ({"event_time": "2016-11-18 06:09:37"}, "2016-11-18T06:09:37+00:00"),
    ({"event_time_selected_timezone": "2024-01-29 04:01:42.364+0800"},
     "2023-11-03T00:49:04.897000+00:00"),
    ({"event_time": None, "event_time_selected_timezone": "2024-01-29 04:01:42.364+0800"},
     "2024-01-28T20:01:42.364000+00:00"),
    ({"event_time": "null", "event_time_selected_timezone": "2024-01-29 04:01:42.364+0800"},
     "2024-01-28T20:01:42.364000+00:00"),
    ({"event_time": "", "event_time_selected_timezone": "2024-01-29 04:01:42.364+0800"},
     "2024-01-28T20:01:42.364000+00:00"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "occurred_at"), TIMES)
def test_time_is_utc_or_has_its_zone(changes: Changes, occurred_at: str) -> None:
    """`event_time` is UTC without a mark; where it is absent, the time with a zone counts."""
    assert event(changes).occurred_at.isoformat() == occurred_at


def test_zone_of_the_app_is_no_part_of_the_identity() -> None:
    """The same instant in the time zone of the app is the same event."""
    abroad: Changes = {
        "event_time": None, "event_time_selected_timezone": "2023-11-03 08:49:04.897+0800",
    }  # fmt: skip
    assert event(abroad).event_id == event().event_id


REPORTS: list[Changes] = [
    {"is_primary_attribution": "false", "is_retargeting": "true", "campaign_type": "retargeting",
     "conversion_type": "re-engagement", "event_type": "re-engagement-in-app-event"},
    {"is_primary_attribution": False, "attributed_touch_time": "2023-11-02 00:00:00.000"},
    {"media_source": "organic", "campaign": None, "event_type": None},
]  # fmt: skip


@pytest.mark.parametrize("changes", REPORTS)
def test_reports_of_one_action_are_one_event(changes: Changes) -> None:
    """The attribution is no part of the identity: the report of a retargeting is a duplicate."""
    assert event(changes).event_id == event().event_id


PURCHASES = [
    '{"af_order_id":"o1"}', {"af_order_id": "o1"}, {"af_receipt_id": "o1"},
    {"af_order_id": "", "af_receipt_id": "o1"}, {"af_order_id": "null", "af_receipt_id": "o1"},
    {"af_order_id": None, "af_receipt_id": "o1"}, '{ "a": {}, "af_order_id" : "o1" }',
]  # fmt: skip


@pytest.mark.parametrize("value", PURCHASES)
def test_order_identifies_the_purchase(value: object) -> None:
    """An order or receipt identifies the event at any time, in a text or in an object."""
    later: Changes = {"event_value": value, "event_time": "2023-11-05 00:00:00.000"}
    found = event(later)
    assert found.has_stable_id
    assert found.event_id == event({"event_value": '{"af_order_id":"o1"}'}).event_id
    assert found.event_id != event({"event_value": {"af_order_id": "o2"}}).event_id


NO_ORDERS: list[object] = [
    "", "{}", "[]", "null", None, 7, "{", '{"af_order_id":"o1"', {"af_order_id": 0},
    "{af_order_id}", {"af_order_id": {}}, {"af_order_id": []}, {"af_order_id": True},
    [{"af_order_id": "o1"}],
]  # fmt: skip


@pytest.mark.parametrize("value", NO_ORDERS)
def test_without_an_order_the_time_identifies(value: object) -> None:
    """A value without a usable order leaves user, name and time as the identity."""
    found = event({"event_value": value})
    assert not found.has_stable_id
    assert found.event_id == event({"event_value": None}).event_id


def test_number_of_an_order_keeps_its_digits() -> None:
    """A number beyond 2**53 is the order of these digits, in a number or in a text."""
    value = '{"af_order_id":635390319521351354}'
    found = event({"event_value": value})
    assert found.event_id == event({"event_value": {"af_order_id": "635390319521351354"}}).event_id
    assert found.event_id != event({"event_value": value.replace("354}", "355}")}).event_id


REVENUES: list[tuple[Changes, str | None, str | None]] = [
    ({}, "9.99", "EUR"),
    ({"event_revenue": 9.99}, "9.99", "EUR"),
    ({"event_revenue": None}, "9.99", "EUR"),
    ({"event_revenue": None, "event_value": {"af_revenue": 1e-05}}, "1e-05", "EUR"),
    ({"event_revenue": None, "event_value": {"af_revenue": "3", "af_currency": "JPY"}}, "3", "JPY"),
    ({"event_revenue_currency": None}, "9.99", "EUR"),
    ({"event_revenue_currency": None, "event_value": None}, "9.99", None),
    ({"event_revenue": None, "event_value": None, "event_revenue_usd": "8"}, "8", "USD"),
    ({"event_revenue": None, "event_value": "{}"}, None, None),
    ({"event_revenue": "null"}, "9.99", "EUR"),
    ({"event_revenue_currency": "null", "event_value": None}, "9.99", None),
]


@pytest.mark.parametrize(("changes", "amount", "currency"), REVENUES)
def test_revenue_has_its_canonical_names(
    changes: Changes, amount: str | None, currency: str | None
) -> None:
    """The revenue is in the properties that `revenue_events` reads, with its currency."""
    found = event(changes).properties
    assert (found.get("revenue_float"), found.get("currency")) == (amount, currency)


def test_device_without_tracking_is_identified_by_its_vendor_id() -> None:
    """Where iOS denies tracking, only `idfv` is left: it is the device, and stays a property."""
    nobody: Changes = dict.fromkeys(("customer_user_id", "appsflyer_id", "advertising_id"))
    denied = {**nobody, "platform": "ios", "idfa": ZEROS}
    found = event({**denied, "idfv": "ccb300a0-de1b"})
    assert (found.adid, found.idfa, found.os_name) == ("ccb300a0-de1b", None, "ios")
    assert found.properties["idfv"] == "ccb300a0-de1b"
    assert found.ignored == ("idfa",)
    assert "idfa" not in found.properties
    same_text = event({**denied, "appsflyer_id": "ccb300a0-de1b"})
    assert same_text.event_id != found.event_id
    assert event({**denied, "idfv": "other"}).event_id != found.event_id


def test_devices_without_any_id_never_share_one() -> None:
    """Without an identifier, every other field distinguishes two devices."""
    nobody: Changes = dict.fromkeys(("customer_user_id", "appsflyer_id", "advertising_id"))
    devices: list[Changes] = [
        {}, {"ip": "1"}, {"user_agent": "1"}, {"appsflyer_id": "null"}, {"customer_user_id": {}},
        {"imei": "1"}, {"event_value": '{"af_order_id":"o1"}'}, {"customer_user_id": "true"},
        {"event_value": '{"af_order_id":"o1"}', "ip": "2"}, {"advertising_id": ["1"]},
    ]  # fmt: skip
    found = [event({**nobody, **device}) for device in devices]
    assert len({one.event_id for one in found}) == len(devices)
    assert found[4].user_id is None
    assert found[4].ignored == ("customer_user_id",)


def test_first_version_has_another_name_of_the_device() -> None:
    """`appsflyer_device_id` of version 1.0 is the same device; its nulls are absent."""
    old: Changes = {
        "appsflyer_id": None, "appsflyer_device_id": GOOD["appsflyer_id"], "customer_user_id": None,
    }  # fmt: skip
    found = event({**old, "click_time": ""})
    assert found.adid == GOOD["appsflyer_id"]
    assert found.event_id == event({"customer_user_id": None}).event_id
    assert "click_time" not in found.properties
    body = json.dumps({**GOOD, "click_time": None}).encode()
    callback = callback_of(b"app_token=a", body, "application/json", VENDOR)
    null = appsflyer.parse(callback, CONFIGURED)
    assert isinstance(null, Event)
    assert "click_time" not in null.properties


def test_keep_narrows_and_reaches_into_the_value() -> None:
    """`keep` narrows the properties; it may name a member of `event_value`, and orders are kept."""
    app = msgspec.structs.replace(CONFIGURED, keep=("campaign", "af_content_id"))
    found = event({"event_value": {"af_order_id": "o1", "af_content_id": "c 1", "x": "1"}}, app)
    assert found.properties == {
        "event_name": "af_purchase", "event_type": "in-app-event", "campaign": "Android_T2_Pur",
        "af_content_id": "c 1", "af_order_id": "o1", "revenue_float": "9.99", "currency": "EUR",
    }  # fmt: skip


def test_omitted_fields_are_stored_nowhere() -> None:
    """An omitted field is in no column and no property; the event is the same one."""
    names = ("customer_user_id", "advertising_id", "country_code", "platform", "event_value")
    app = msgspec.structs.replace(CONFIGURED, omit=names)
    found = event({}, app)
    assert (found.user_id, found.gps_adid, found.country, found.os_name) == (None,) * 4
    assert "event_value" not in found.properties
    assert found.event_id == event().event_id


def test_omitted_revenue_has_no_copy() -> None:
    """A revenue that the app omits is not under the shared names either."""
    app = msgspec.structs.replace(CONFIGURED, omit=("event_revenue", "event_value"))
    found = event({}, app)
    assert "9.99" not in found.properties.values()
    assert found.event_id == event().event_id


def test_app_chooses_its_own_stable_id() -> None:
    """An app's `stable_id` replaces AppsFlyer's; an empty one leaves the time."""
    value = {"event_value": {"af_order_id": "o1", "ticket": "t1"}}
    own = msgspec.structs.replace(CONFIGURED, stable_id=("ticket",))
    assert event(value, own).event_id != event(value).event_id
    none = msgspec.structs.replace(CONFIGURED, stable_id=())
    assert not event(value, none).has_stable_id


@pytest.mark.parametrize("vector", vectors_of("appsflyer"), ids=lambda vector: vector["id"])
def test_adapter_alone_gives_the_outcome_of_a_vector(vector: dict[str, object]) -> None:
    """The adapter alone gives the outcome of every real message."""
    expected = vector["expect"]
    assert isinstance(expected, dict)
    if expected["status"] != 200:
        return  # no adapter sees it
    app = msgspec.structs.replace(
        CONFIGURED,
        events={name: name for name in ("app_start", "af_purchase", "install", "loyal_click")},
    )
    body = str(vector["body"]).encode()
    found = appsflyer.parse(callback_of(b"app_token=a", body, "application/json", VENDOR), app)
    assert isinstance(found, Event)
    assert (found.os_name, found.country) == (expected["os_name"], expected["country"])
