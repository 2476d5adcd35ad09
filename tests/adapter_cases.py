"""The promises of every adapter: a vendor's test inherits `AdapterCases` and fills it in."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import ClassVar
from urllib.parse import urlencode

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adapters
from adapters._names import USERS
from app.callbacks import make_callback
from app.errors import MalformedBody
from app.event import App, Callback, Drop, Event
from app.json_objects import DEPTH_MAX
from app.normalize import identifier
from app.parameters import FORM, read_body
from app.vendor import Vendor
from sinks.timescale.encoding import encode_rows

SECRETS = ("s3cr3t", "rotated")
RECEIVED_AT = datetime(2025, 6, 21, 12, tzinfo=UTC)

# Values that a client can put into a parameter: plain, awkward, forged, or nothing.
any_text = st.text(max_size=12) | st.sampled_from([
    "", "{x}", '{"a":1}', "0", "0000-00", "1750500000", "2025-06-21T10:00:00 0200", "%", "\xa0",
    "\x00", "9" * 5000, "9999-12-31T23:59:60-23:59", "0001-01-01T00:00:00+23:59", "ß" * 5000,
])  # fmt: skip
any_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(any_text, inner, max_size=3),
    max_leaves=8,
)
# JSON of every type, and what programs write in place of a value.
WRONG_JSON = (
    "null", '"null"', "true", "false", '"false"', "0", "-1", "1.50", "1e999", "9" * 5000, '"0"',
    "[]", "{}", '[{"a":null}]', '{"a":[1,{"b":"c"}]}', '""', '" "', '"\\u0000"', '"\\ud800"',
    '"\xff"', '{"\\udc00":"\\ud800x"}', "[" * (DEPTH_MAX - 2) + "]" * (DEPTH_MAX - 2),
)  # fmt: skip
DEEP = "[" * 10_000 + "]" * 10_000
# Few values, so that two draws are often equal; some identify nobody.
any_value = st.sampled_from(["", "a", "b", "1", "A", "null", "0", "00000000-0000", "(none)"])
any_content_type = st.sampled_from([FORM, "application/json", ""])
# One class for each vendor, and all of them inherit the same function.
inherited = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])


VENDORS = adapters.load()
ADJUST = VENDORS["adjust"]


def callback_of(
    query: bytes, body: bytes = b"", content_type: str = "", vendor: Vendor = ADJUST
) -> Callback:
    """The callback that the gateway hands to an adapter for a request, made by the gateway itself.

    It arrived at `RECEIVED_AT`. Its mappings cannot be written to.
    """
    headers = {"content-type": content_type}
    readable = read_body(content_type, body)
    if readable is None:
        raise MalformedBody
    callback = make_callback(vendor, query, readable, headers, RECEIVED_AT, retention_d=0)
    in_body = callback.in_body
    return msgspec.structs.replace(
        callback,
        query=MappingProxyType(dict(callback.query)),
        in_body=in_body and (lambda: MappingProxyType(dict(in_body()))),
        headers=MappingProxyType(headers),
    )


def json_object(members: Mapping[str, str]) -> bytes:
    """A JSON object of members in JSON; `user.id` is the member `id` of an object `user`."""
    tree: dict[str, str | dict[str, str]] = {}
    for path, text in members.items():
        name, _, inner = path.partition(".")
        nested = tree.get(name)
        if not inner:
            tree[name] = text
        elif isinstance(nested, dict):
            nested[inner] = text
        else:
            tree[name] = {inner: text}
    texts = (
        f"{json.dumps(name)}:{member if isinstance(member, str) else json_object(member).decode()}"
        for name, member in tree.items()
    )
    return f"{{{','.join(texts)}}}".encode("utf-8", "surrogatepass")


def in_json_body(parameters: Mapping[str, str], vendor: Vendor) -> Callback:
    """The callback of a vendor that sends everything but the app token in a JSON object."""
    members = {n: json.dumps(value) for n, value in parameters.items() if n != "app_token"}
    query = urlencode({"app_token": parameters.get("app_token", "")}).encode()
    return callback_of(query, json_object(members), "application/json", vendor)


def assert_fits(event: Event, callback: Callback, app: App) -> None:
    """Fail where an event is not one that the sink can store and an analyst can read."""
    assert len(event.event_id) == 16
    assert (event.workspace_id, event.vendor) == (app.workspace_id, app.vendor)
    assert event.app_token == app.app_token
    assert event.event_type in {*app.events.values(), *app.activities.values()}
    assert event.received_at == callback.received_at
    assert event.occurred_at.utcoffset() == timedelta(0)
    assert callback.accepts(event.occurred_at)
    assert event.os_name in (None, "ios", "android")
    assert event.country is None or (event.country.isascii() and event.country.isupper())
    # Every field has its type, and every text an encoding: no lone surrogate.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=Event) == event
    texts = [event.user_id, event.adid, event.idfa, event.gps_adid, event.event_type]
    texts += [*event.properties, *event.properties.values()]
    assert all(text is None or (text and "\x00" not in text) for text in texts)
    assert "secret" not in event.properties
    encode_rows([event])


def parsed(callback: Callback, app: App) -> Event | Drop:
    """The outcome of a callback; fails for an event that the sink cannot store."""
    found = VENDORS[app.vendor].parse(callback, app)
    if isinstance(found, Event):
        assert_fits(found, callback, app)
    return found


class AdapterCases:
    """The tests of one vendor. `parameters` make a callback that becomes an event.

    `another_user` and `another_second` make it one of another user, or of another second: where the
    vendor sends a stable ID with every event, `another_second` has another one. `stable_id` gives
    the event a stable ID, and `another_time` changes nothing but its time. `revenue` gives it one
    of 4.99 euros. `users` are the names of the identifiers by precedence, `others` of parameters
    that distinguish devices without any. `placeholder` is the vendor's placeholder for a parameter
    called `name`; empty for a vendor that has none, and whose UNFILLED matches nothing.

    A vendor with its data in the body overrides `callback`: see `in_json_body`.
    """

    app: ClassVar[App]
    parameters: ClassVar[Mapping[str, str]]
    another_user: ClassVar[Mapping[str, str]]
    another_second: ClassVar[Mapping[str, str]]
    another_time: ClassVar[Mapping[str, str]]
    stable_id: ClassVar[Mapping[str, str]]
    revenue: ClassVar[Mapping[str, str]]
    users: ClassVar[tuple[str, ...]] = tuple(USERS)
    others: ClassVar[tuple[str, ...]] = ("ip_address", "user_agent", "idfv")
    placeholder: ClassVar[str] = "{name}"

    @property
    def adapter(self) -> Vendor:
        """The vendor, found as the gateway finds it."""
        return VENDORS[self.app.vendor]

    def callback(self, parameters: Mapping[str, str]) -> Callback:
        """The callback that brings these parameters."""
        query = urlencode(parameters, errors="surrogatepass").encode()
        return callback_of(query, vendor=self.adapter)

    def json_callback(self, members: Mapping[str, str]) -> Callback:
        """The callback with a body of these members in JSON."""
        query = urlencode({"app_token": self.app.app_token}).encode()
        return callback_of(query, json_object(members), "application/json", self.adapter)

    def outcome(self, parameters: Mapping[str, str]) -> Event | Drop:
        """The outcome of a callback with these parameters."""
        return self.adapter.parse(self.callback(parameters), self.app)

    def event(self, parameters: Mapping[str, str] | None = None, app: App | None = None) -> Event:
        """The event that these parameters become; by default, the good ones."""
        callback = self.callback(self.parameters if parameters is None else parameters)
        event = parsed(callback, app or self.app)
        assert isinstance(event, Event)
        return event

    def test_good_callback_is_an_event(self) -> None:
        """The callback of a well-configured app becomes an event of that app."""
        assert self.event()

    def test_redelivery_is_the_same_event(self) -> None:
        """A redelivery is the same event, at any time of its arrival."""
        callback = self.callback(self.parameters)
        again = msgspec.structs.replace(callback, received_at=RECEIVED_AT + timedelta(days=1))
        event = self.adapter.parse(callback, self.app)
        assert event == self.adapter.parse(callback, self.app)
        assert isinstance(event, Event)
        assert self.adapter.parse(again, self.app) == msgspec.structs.replace(
            event, received_at=again.received_at
        )

    def test_redelivery_in_another_form_is_the_same_event(self) -> None:
        """Neither the order of the parameters nor one more of them makes another event."""
        names = reversed(list(self.parameters))
        assert self.event({name: self.parameters[name] for name in names}) == self.event()
        more = {"unheard-of": "1", **self.parameters, "Unheard_of": "2"}
        assert self.event(more).event_id == self.event().event_id

    def test_other_events_have_other_ids(self) -> None:
        """Another user, another second and another app are other events."""
        token = self.app.app_token + "2"
        another_app = msgspec.structs.replace(self.app, app_token=token)
        events = [
            self.event(),
            self.event({**self.parameters, **self.another_user}),
            self.event({**self.parameters, **self.another_second}),
            self.event(app=another_app),
        ]
        assert len({event.event_id for event in events}) == len(events)

    def test_unmapped_app_drops_everything(self) -> None:
        """An app without a mapping drops everything, and breaks nothing."""
        unmapped = msgspec.structs.replace(self.app, events={}, activities={})
        callback = self.callback(self.parameters)
        assert isinstance(self.adapter.parse(callback, unmapped), Drop)

    def assert_total(self, callback: Callback) -> None:
        """Fail where a callback becomes neither a drop nor an event that can be stored."""
        assert isinstance(parsed(callback, self.app), Event | Drop)

    @inherited
    @given(st.binary(), any_content_type, st.binary())
    def test_any_bytes_have_an_outcome(self, query: bytes, content_type: str, body: bytes) -> None:
        """Any bytes become a drop or an event that can be stored."""
        query = b"secret=s3cr3t&" + query
        try:
            callback = callback_of(query, body, content_type, self.adapter)
        except MalformedBody:
            return  # answered 400: no adapter sees it
        self.assert_total(callback)

    @inherited
    @given(st.data())
    def test_any_values_have_an_outcome(self, data: st.DataObject) -> None:
        """For any values that a client puts into the parameters, the outcome can be stored."""
        names = st.sampled_from(sorted({*self.parameters, *(self.app.keep or ())}))
        values = data.draw(st.dictionaries(names, any_text))
        self.assert_total(self.callback({**self.parameters, **values}))

    def test_stable_id_counts_in_place_of_the_time(self) -> None:
        """Two deliveries with one stable ID are one event, at any time."""
        first = self.event({**self.parameters, **self.stable_id})
        second = self.event({**self.parameters, **self.stable_id, **self.another_time})
        assert first.has_stable_id
        assert second.has_stable_id
        assert first.event_id == second.event_id
        assert first.occurred_at != second.occurred_at

    def test_revenue_has_the_names_that_analysts_read(self) -> None:
        """A revenue is in the properties that the view `revenue_events` reads."""
        properties = self.event({**self.parameters, **self.revenue}).properties
        assert (properties["revenue_float"], properties["currency"]) == ("4.99", "EUR")

    def test_placeholder_left_unfilled_is_absent(self) -> None:
        """A parameter left as the vendor's own placeholder counts as if it had not been sent."""
        if not self.placeholder:
            assert not any(map(self.adapter.unfilled.fullmatch, ("{a}", "{{a}}", "${(a)!}", "")))
            return
        for name in self.parameters.keys() - {"app_token"}:
            without = {n: value for n, value in self.parameters.items() if n != name}
            left = self.outcome({**without, name: self.placeholder.replace("name", "x_1")})
            absent = self.outcome(without)
            assert left == absent or (isinstance(left, Drop) and isinstance(absent, Drop)), name

    def test_any_type_of_json_has_an_outcome(self) -> None:
        """JSON of every type has an outcome in the place of each parameter, and in all of them."""
        good = {n: json.dumps(value) for n, value in self.parameters.items() if n != "app_token"}
        for wrong in WRONG_JSON:
            for name in good:
                self.assert_total(self.json_callback({**good, name: wrong}))
            self.assert_total(self.json_callback(dict.fromkeys(good, wrong)))
        with pytest.raises(MalformedBody):
            self.json_callback({**good, next(iter(good)): DEEP})

    @inherited
    @given(st.data())
    def test_any_json_has_an_outcome(self, data: st.DataObject) -> None:
        """For any JSON that a client puts into the body, the outcome can be stored."""
        good = {n: json.dumps(value) for n, value in self.parameters.items() if n != "app_token"}
        names = st.sampled_from(sorted(good)) | st.text("ab", max_size=3)
        drawn = data.draw(st.dictionaries(names, any_json.map(json.dumps), max_size=4))
        self.assert_total(self.json_callback({**good, **drawn}))

    @inherited
    @given(st.data())
    def test_two_devices_never_share_an_event(self, data: st.DataObject) -> None:
        """Without a stable ID, the first identifier distinguishes two events, or all the others."""
        names = st.sampled_from([*self.users, *self.others])
        devices = [data.draw(st.dictionaries(names, any_value)) for _ in range(2)]
        bare = {n: v for n, v in self.parameters.items() if n not in (*self.users, *self.stable_id)}
        events = [self.event({**bare, **device}) for device in devices]
        assert not any(event.has_stable_id for event in events)
        persons = [self._person(device) for device in devices]
        if persons[0] != persons[1]:
            assert events[0].event_id != events[1].event_id

    def _person(self, device: Mapping[str, str]) -> object:
        for name in self.users:
            if value := identifier(device.get(name, "")):
                return name, value.lower()
        return {name: value for name, value in device.items() if value}
