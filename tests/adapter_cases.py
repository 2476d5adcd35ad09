"""The promises of every adapter: a vendor's test inherits `AdapterCases` and fills it in."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import ClassVar
from urllib.parse import urlencode

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adapters
from app.callbacks import make_callback
from app.errors import MalformedBody
from app.event import App, Callback, Drop, Event
from app.parameters import FORM, parse_body
from sinks.timescale.encoding import encode_rows

SECRETS = ("s3cr3t", "rotated")
RECEIVED_AT = datetime(2025, 6, 21, 12, tzinfo=UTC)

# Values that a client can put into a parameter: plain, awkward, forged, or nothing.
any_text = st.text(max_size=12) | st.sampled_from([
    "", "{x}", '{"a":1}', "0", "0000-00", "1750500000", "2025-06-21T10:00:00 0200", "%", "\xa0",
    "\x00", "9" * 5000, "9999-12-31T23:59:60-23:59", "0001-01-01T00:00:00+23:59", "ß" * 5000,
])  # fmt: skip
any_content_type = st.sampled_from([FORM, "application/json", ""])
# One class for each vendor, and all of them inherit the same function.
inherited = settings(deadline=None, suppress_health_check=[HealthCheck.differing_executors])


def callback_of(query: bytes, body: bytes = b"", content_type: str = "") -> Callback:
    """The callback that the gateway hands to an adapter for a request, made by the gateway itself.

    It arrived at `RECEIVED_AT`. Its mappings cannot be written to.
    """
    headers = {"content-type": content_type}
    in_body = parse_body(content_type, body)
    if in_body is None:
        raise MalformedBody
    callback = make_callback(query, in_body, body, headers, RECEIVED_AT, retention_d=0)
    return msgspec.structs.replace(
        callback,
        query=MappingProxyType(dict(callback.query)),
        parameters=MappingProxyType(dict(callback.parameters)),
        headers=MappingProxyType(headers),
    )


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


class AdapterCases:
    """The tests of one vendor. `parameters` make a callback that becomes an event.

    `another_user` and `another_second` make it one of another user, or of another second.
    A vendor that does not send parameters in the URL overrides `callback`.
    """

    app: ClassVar[App]
    parameters: ClassVar[Mapping[str, str]]
    another_user: ClassVar[Mapping[str, str]]
    another_second: ClassVar[Mapping[str, str]]

    @property
    def adapter(self) -> adapters.Adapter:
        """The vendor's module, found as the gateway finds it."""
        return adapters.load()[self.app.vendor]

    def callback(self, parameters: Mapping[str, str]) -> Callback:
        """The callback that brings these parameters."""
        query = urlencode(parameters, errors="surrogatepass").encode()
        return callback_of(query)

    def event(self, parameters: Mapping[str, str] | None = None, app: App | None = None) -> Event:
        """The event that these parameters become; by default, the good ones."""
        callback = self.callback(self.parameters if parameters is None else parameters)
        event = self.adapter.parse(callback, app or self.app)
        assert isinstance(event, Event)
        assert_fits(event, callback, app or self.app)
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
        event = self.adapter.parse(callback, self.app)
        if isinstance(event, Event):
            assert_fits(event, callback, self.app)
        else:
            assert isinstance(event, Drop)

    @inherited
    @given(st.binary(), any_content_type, st.binary())
    def test_any_bytes_have_an_outcome(self, query: bytes, content_type: str, body: bytes) -> None:
        """Any bytes become a drop or an event that can be stored."""
        query = b"secret=s3cr3t&" + query
        try:
            callback = callback_of(query, body, content_type)
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
