"""Branch: webhooks as JSON and as macros of a URL, their events, and the reasons of a drop."""

import json
from collections.abc import Mapping
from typing import ClassVar
from urllib.parse import urlencode

import msgspec
import pytest

from adapters import branch
from app.event import App, Callback, Drop, DropReason, Event
from app.set_parameters import set_parameters
from tests.adapter_cases import VENDORS, AdapterCases, callback_of, in_json_body, parsed
from tests.vectors import APP, vectors_of

CONFIGURED = App(
    workspace_id="ws_test",
    vendor="branch",
    app_token=APP,
    events={"PURCHASE": "purchase", "OPEN": "app_open", "my alias": "special"},
)
# The parameters of the documented URL.
GOOD = {
    "id": "635390319521351354",
    "name": "PURCHASE",
    "event_timestamp": "1552727083843",
    "user_data.developer_identity": "usr_br_1",
    "user_data.os": "ANDROID",
    "user_data.aaid": "99C5B45C-40AB-4E63-8C24-000000004853",
    "user_data.geo_country_code": "IN",
    "event_data.revenue": "9.99",
    "event_data.currency": "USD",
}
BODY: dict[str, object] = {
    "name": "PURCHASE",
    "id": "635390319521351354",
    "timestamp": 1552727083843,
    "attributed": "false",
    "content_items": [{"$price": 9.99}],
    "custom_data": {"name": "x", "coupon": "null"},
    "user_data": {
        "os": "ANDROID",
        "aaid": "99C5B45C-40AB-4E63-8C24-000000004853",
        "developer_identity": "usr_br_1",
        "geo_country_code": "IN",
        "geo_lat": 20.0,
        "is_jailbroken": "null",
        "http_referrer": "",
        "limit_ad_tracking": False,
    },
    "event_data": {"revenue": 9.99, "currency": "USD", "transaction_id": "t1"},
    "last_attributed_touch_data": {"~campaign": "appinstall", "+via_features": ["ADS"]},
}
VENDOR = VENDORS["branch"]
NOBODY = {"os": "IOS", "idfa": "00000000-0000-0000-0000-000000000000"}
NAMED = {"name": "PURCHASE", "timestamp": 1552727083843}

Changes = Mapping[str, object]
NOTHING: Changes = {}


class TestGet(AdapterCases):
    """Branch keeps the promises of every adapter in a GET, with its stable ID."""

    app = CONFIGURED
    parameters: ClassVar[Mapping[str, str]] = GOOD
    # Neither user nor time are part of the identity: another event has another ID.
    another_user: ClassVar[Mapping[str, str]] = {
        "user_data.developer_identity": "usr_br_2", "id": "635390319521351355",
    }  # fmt: skip
    another_second: ClassVar[Mapping[str, str]] = {
        "event_timestamp": "1552727084843", "id": "635390319521351356",
    }  # fmt: skip
    another_time: ClassVar[Mapping[str, str]] = {"event_timestamp": "1552727084843"}
    stable_id: ClassVar[Mapping[str, str]] = {"id": "635390319521351354"}
    revenue: ClassVar[Mapping[str, str]] = {
        "event_data.revenue": "4.99", "event_data.currency": "EUR",
    }  # fmt: skip
    users = (
        "user_data.developer_identity", "adid", "user_data.aaid", "user_data.idfa",
        "user_data.idfv", "user_data.android_id",
    )  # fmt: skip
    others = ("user_data.ip", "user_data.user_agent", "custom_data.session")
    placeholder = "${(name)!}"


class TestPost(TestGet):
    """Branch keeps the promises of every adapter in a POST of JSON."""

    def callback(self, parameters: Mapping[str, str]) -> Callback:
        """The callback that brings these parameters, each in its section."""
        return in_json_body(parameters, self.adapter)


class TestWithoutId(TestGet):
    """Branch keeps the promises of every adapter where its ID is not sent."""

    parameters: ClassVar[Mapping[str, str]] = {
        name: value for name, value in GOOD.items() if name != "id"
    }
    another_user: ClassVar[Mapping[str, str]] = {"user_data.developer_identity": "usr_br_2"}
    another_second: ClassVar[Mapping[str, str]] = {"event_timestamp": "1552727084843"}


def in_json(body: object) -> Callback:
    """The callback of a POST."""
    query = f"app_token={APP}".encode()
    return callback_of(query, json.dumps(body).encode(), "application/json", VENDOR)


def parse(changes: Changes = NOTHING, app: App = CONFIGURED) -> Event | Drop:
    """The outcome of the good body with these changes; None takes a member away."""
    body = {name: value for name, value in {**BODY, **changes}.items() if value is not None}
    return parsed(in_json(body), app)


def event(changes: Changes = NOTHING, app: App = CONFIGURED) -> Event:
    """The event that the good body becomes with these changes."""
    found = parse(changes, app)
    assert isinstance(found, Event)
    return found


def of_url(parameters: Mapping[str, str]) -> Event | Drop:
    """The outcome of a GET."""
    query = urlencode({"app_token": APP, **parameters}).encode()
    return parsed(callback_of(query, vendor=VENDOR), CONFIGURED)


def test_columns_have_their_canonical_values() -> None:
    """Columns hold the members of their meaning; sections are flat."""
    found = event()
    assert (found.user_id, found.event_type) == ("usr_br_1", "purchase")
    assert found.gps_adid == "99c5b45c-40ab-4e63-8c24-000000004853"
    assert (found.os_name, found.country, found.has_stable_id) == ("android", "IN", True)
    assert found.occurred_at.isoformat() == "2019-03-16T09:04:43.843000+00:00"
    assert found.properties == {
        "name": "PURCHASE",
        "id": "635390319521351354",
        "attributed": "false",
        "content_items": '[{"$price": 9.99}]',
        "custom_data.name": "x",
        "custom_data.coupon": "null",
        "user_data.geo_lat": "20.0",
        "user_data.is_jailbroken": "null",
        "user_data.limit_ad_tracking": "false",
        "event_data.revenue": "9.99",
        "event_data.currency": "USD",
        "event_data.transaction_id": "t1",
        "last_attributed_touch_data.~campaign": "appinstall",
        "last_attributed_touch_data.+via_features": '["ADS"]',
        "revenue_float": "9.99",
        "currency": "USD",
    }


def test_get_and_post_are_one_event() -> None:
    """A GET with macros has the event of the POST."""
    in_url = of_url(GOOD)
    assert isinstance(in_url, Event)
    found = event()
    assert columns_of(in_url) == columns_of(found)
    assert of_url({n.rpartition(".")[2]: value for n, value in GOOD.items()}) == in_url


def columns_of(found: Event) -> Event:
    """The event without its properties."""
    return msgspec.structs.replace(found, properties={})


IDS: list[Changes] = [
    {"id": 635390319521351354},
    {"timestamp": 1552727099999},
    {"timestamp": None, "event_timestamp": "1552727083843"},
    {"timestamp": "null", "event_timestamp": 1552727083843},
    {"user_data": {}},
    {"user_data": {"developer_identity": "another"}},
    {"user_data": None, "event_data": None, "custom_data": None},
]


@pytest.mark.parametrize("changes", IDS)
def test_id_identifies_the_event_alone(changes: Changes) -> None:
    """Branch's ID, as text or number, identifies an event at any time and for any user."""
    found = event(changes)
    assert found.event_id == event().event_id
    assert found.has_stable_id


def test_id_keeps_its_digits() -> None:
    """Two IDs beyond 2**53 that differ in the last digit are two events."""
    numbers = [635390319521351354, 635390319521351355, 6.35390319521351e17, int("9" * 4000)]
    found = [event({"id": number}) for number in numbers]
    assert len({one.event_id for one in found}) == len(numbers)
    assert found[0].properties["id"] == "635390319521351354"
    assert event({"id": 1, "name": "OPEN"}).event_id != event({"id": 1}).event_id


def test_event_within_data_is_the_same_event() -> None:
    """An event that is wrapped under `data` is the event."""
    found = branch.parse(in_json({"data": BODY, "webhook_id": "7"}), CONFIGURED)
    assert isinstance(found, Event)
    assert found.event_id == event().event_id
    assert found.properties["webhook_id"] == "7"
    assert event({"data": {"name": "OPEN"}}).event_type == "purchase"


WRAPPERS: list[Changes] = [
    {"timestamp": 1552727099999, "id": 7, "user_data": {"os": "IOS"}},
    {"name": "delivery", "timestamp": 1552727099999},
]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapper_is_no_part_of_the_event(wrapper: Changes) -> None:
    """Members of the object around an event never take the place of the event's own."""
    found = branch.parse(in_json({**wrapper, "data": BODY}), CONFIGURED)
    assert isinstance(found, Event)
    assert columns_of(found) == columns_of(event())


def test_parameter_is_set_in_an_event_within_data() -> None:
    """A parameter that is set by hand takes the place of the wrapped event's own."""
    callback = set_parameters(in_json({"data": BODY}), {"name": "OPEN", "timestamp": "1552727080"})
    found = branch.parse(callback, CONFIGURED)
    assert isinstance(found, Event)
    assert (found.event_type, found.user_id) == ("app_open", "usr_br_1")


NO_IDS: list[object] = [None, "", "null", "0", 0, {}, [], True, [1], {"a": 1}, "undefined"]


@pytest.mark.parametrize("value", NO_IDS)
def test_without_an_id_user_and_time_identify(value: object) -> None:
    """An ID that is none leaves user, name and time as the identity."""
    found = event({"id": value})
    assert not found.has_stable_id
    assert found.event_id == event({"id": None}).event_id
    assert found.event_id != event({"id": value, "timestamp": 1552727083844}).event_id
    assert found.event_id != event({"id": value, "user_data": {"idfv": "1"}}).event_id


def test_devices_without_any_id_never_share_one() -> None:
    """Without an ID of event or device, every other parameter distinguishes two devices."""
    devices: list[Changes] = [
        {}, {"ip": "1"}, {"idfv": "1"}, {"idfv": "2"}, {"android_id": "1"}, {"idfa": {}},
        {"developer_identity": "(null)"}, {"developer_identity": "guest"}, {"aaid": "1"},
    ]  # fmt: skip
    found = [branch.parse(in_json({**NAMED, "user_data": {**NOBODY, **device}}), CONFIGURED)
             for device in devices]  # fmt: skip
    ids = {one.event_id for one in found if isinstance(one, Event)}
    assert len(ids) == len(devices)


def test_device_without_tracking_is_identified_by_its_vendor_id() -> None:
    """Where iOS denies tracking, only `idfv` is left: it is the device, and stays a property."""
    found = event({"id": None, "user_data": {**NOBODY, "idfv": "ccb300a0-de1b"}})
    assert (found.adid, found.idfa, found.os_name) == ("ccb300a0-de1b", None, "ios")
    assert found.properties["user_data.idfv"] == "ccb300a0-de1b"
    assert found.ignored == ("user_data.idfa",)


TYPES: list[tuple[Changes, str]] = [
    ({}, "purchase"),
    ({"name": "OPEN"}, "app_open"),
    ({"customer_event_alias": "my alias"}, "special"),
    ({"customer_event_alias": "unknown"}, "purchase"),
    ({"customer_event_alias": "null"}, "purchase"),
    ({"customer_event_alias": "my alias", "name": None}, "special"),
]


@pytest.mark.parametrize(("changes", "event_type"), TYPES)
def test_type_comes_from_the_alias_then_the_name(changes: Changes, event_type: str) -> None:
    """The app's own alias of an event is looked up in `events`, then Branch's name."""
    assert event(changes).event_type == event_type


DROPS: list[tuple[Changes, str, str]] = [
    ({"name": "CLICK"}, "unmapped_event", "CLICK"),
    ({"name": None}, "unmapped_event", ""),
    ({"name": "null"}, "unmapped_event", "null"),
    ({"name": {"a": 1}}, "unmapped_event", '{"a": 1}'),
    ({"timestamp": None}, "invalid_timestamp", ""),
    ({"timestamp": "null"}, "invalid_timestamp", "null"),
    ({"timestamp": "soon"}, "invalid_timestamp", "soon"),
    ({"timestamp": {}}, "invalid_timestamp", "{}"),
    ({"timestamp": "1" * 5000}, "invalid_timestamp", "1" * 5000),
]


@pytest.mark.parametrize(("changes", "reason", "subject"), DROPS)
def test_drop_has_its_reason(changes: Changes, reason: str, subject: str) -> None:
    """A webhook that is no event is dropped for the first reason that applies, with its subject."""
    assert parse(changes) == Drop(DropReason(reason), subject)


MACROS = ["${(id)!}", "${(event_timestamp)!}", "${(user_data.os)!}", "${id}", "${(a.~b)!'x'}"]
MACROS += ["<#if attributed>1<#else>0</#if>"]


@pytest.mark.parametrize("macro", MACROS)
def test_macro_left_unfilled_is_absent(macro: str) -> None:
    """A macro that was not resolved is an absent parameter; name and time are named in the drop."""
    found = of_url({**GOOD, "id": macro, "user_data.os": macro, "extra": macro})
    assert isinstance(found, Event)
    assert (found.has_stable_id, found.os_name) == (False, None)
    assert not {"id", "extra"} & found.properties.keys()
    for name in ("name", "event_timestamp"):
        assert of_url({**GOOD, name: macro}) == Drop(DropReason.UNFILLED_PLACEHOLDER, macro)


@pytest.mark.parametrize("value", ["$5", "{id}", "<b>", "$", "${", "a ${b}"])
def test_other_values_are_no_macros(value: str) -> None:
    """A value that only resembles a macro is kept as it was sent."""
    found = of_url({**GOOD, "extra": value})
    assert isinstance(found, Event)
    assert found.properties["extra"] == value


def test_parameter_of_the_url_wins_over_the_body() -> None:
    """A parameter that the customer wrote into the URL wins over the body's of the same name."""
    query = f"app_token={APP}&origin=mine".encode()
    body = json.dumps({**BODY, "origin": "BRANCH"}).encode()
    found = branch.parse(callback_of(query, body, "application/json", VENDOR), CONFIGURED)
    assert isinstance(found, Event)
    assert found.properties["origin"] == "mine"


REVENUES: list[tuple[Changes, str | None, str | None]] = [
    ({"revenue": "null", "revenue_in_usd": 8, "currency": "EUR"}, "8", "USD"),
    ({"revenue": 9.99, "currency": "null"}, "9.99", None),
    ({"revenue": "null", "revenue_in_usd": "null"}, None, None),
]


@pytest.mark.parametrize(("values", "amount", "currency"), REVENUES)
def test_revenue_has_its_canonical_names(
    values: Changes, amount: str | None, currency: str | None
) -> None:
    """The revenue is in the properties that `revenue_events` reads; `null` is none."""
    found = event({"event_data": values}).properties
    assert (found.get("revenue_float"), found.get("currency")) == (amount, currency)


def test_omitted_revenue_has_no_copy() -> None:
    """A revenue that the app omits is not under the shared names either."""
    for names in (("event_data.revenue",), ("event_data",), ("revenue_float",)):
        found = event({}, msgspec.structs.replace(CONFIGURED, omit=names))
        assert "revenue_float" not in found.properties
        assert found.event_id == event().event_id


def test_keep_and_omit_name_the_properties() -> None:
    """`keep` lists properties by their flat names; `omit` takes the member's own name too."""
    app = msgspec.structs.replace(CONFIGURED, keep=("user_data.geo_lat",))
    assert event({}, app).properties == {
        "name": "PURCHASE", "id": "635390319521351354", "user_data.geo_lat": "20.0",
        "revenue_float": "9.99", "currency": "USD",
    }  # fmt: skip
    for names in (("geo_lat", "aaid"), ("user_data.geo_lat", "user_data.aaid")):
        without = event({}, msgspec.structs.replace(CONFIGURED, omit=names))
        assert "user_data.geo_lat" not in without.properties
        assert without.gps_adid is None
        assert without.event_id == event().event_id


def test_app_chooses_its_own_stable_id() -> None:
    """An app's `stable_id` replaces Branch's, and then the user is part of the identity."""
    app = msgspec.structs.replace(CONFIGURED, stable_id=("event_data.transaction_id",))
    found = event({"id": 7, "timestamp": 1552727099999}, app)
    assert found.event_id == event({}, app).event_id
    assert found.has_stable_id
    assert event({"user_data": {"developer_identity": "x"}}, app).event_id != found.event_id


@pytest.mark.parametrize("vector", vectors_of("branch"), ids=lambda vector: vector["id"])
def test_adapter_alone_gives_the_outcome_of_a_vector(vector: dict[str, object]) -> None:
    """The adapter alone gives the outcome of every real webhook."""
    expected = vector["expect"]
    assert isinstance(expected, dict)
    names = ("OPEN", "PURCHASE", "INSTALL", "WEB_SESSION_START")
    app = msgspec.structs.replace(CONFIGURED, events={name: name for name in names})
    body = str(vector.get("body", "")).encode()
    callback = callback_of(str(vector["query"]).encode(), body, "application/json", VENDOR)
    found = branch.parse(callback, app)
    if expected["outcome"] == "dropped":
        assert isinstance(found, Drop)
        return
    assert isinstance(found, Event)
    assert (found.os_name, found.country) == (expected["os_name"], expected["country"])
