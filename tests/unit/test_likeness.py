"""The likely meaning of an event without a mapping, and the lines of `tail`."""

from datetime import UTC, datetime

import pytest
from msgspec.structs import replace

from app.commands.known_apps import KnownApps
from app.commands.likeness import (
    NO_TOKEN,
    Kind,
    Likeness,
    Section,
    kind_of,
    likeness,
    parameters_of,
)
from app.commands.tail_lines import REMEDIES, Line, line_of, text_of
from app.event import App
from sinks.timescale.follow import Dropped, Rejected

APP = App(
    workspace_id="ws_test",
    vendor="adjust",
    app_token="abc123token",
    events={"g3mz3t": "purchase"},
    activities={"Install": "app_install"},
    ignore=("impression",),
)
TOKEN = {"event_token": "zzzzzz", "activity_kind": "event"}
NO_APPS = KnownApps("")
AT = datetime(2026, 11, 21, 16, 2, 14, tzinfo=UTC)

LIKENESSES = [
    ("", {}, Likeness(Kind.NONE, NO_TOKEN)),
    ("zzzzzz", TOKEN, Likeness(Kind.TOKEN, "", Section.EVENTS)),
    ("zzzzzz", {**TOKEN, "revenue_float": "4.99", "currency": "USD"},
     Likeness(Kind.TOKEN, "has revenue (usd): a purchase?", Section.EVENTS)),
    ("zzzzzz", {**TOKEN, "revenue": "499"},
     Likeness(Kind.TOKEN, "has revenue: a purchase?", Section.EVENTS)),
    ("zzzzzz", {**TOKEN, "event_name": "Order Completed", "revenue": "499"},
     Likeness(Kind.TOKEN, 'named "Order Completed", has revenue: a purchase?', Section.EVENTS)),
    ("zzzzzz", {**TOKEN, "event_name": "Sign-Up"},
     Likeness(Kind.TOKEN, 'named "Sign-Up": a signup?', Section.EVENTS)),
    ("login", {"event_token": "login"}, Likeness(Kind.TOKEN, "a login?", Section.EVENTS)),
    ("G3MZ3T", {"event": "G3MZ3T"},
     Likeness(Kind.TOKEN, "differs only in letter case from g3mz3t (purchase)", Section.EVENTS,
              "purchase")),
    ("g3mz3t", {"event": "g3mz3t"},
     Likeness(Kind.TOKEN, "mapped by now, to purchase: replay it")),
    ("impression", {"activity_kind": "impression"}, Likeness(Kind.ACTIVITY, "ignored by now")),
    ("click", {"activity_kind": "click"},
     Likeness(Kind.ACTIVITY, "not wanted? add it to ignore", Section.IGNORE)),
    ("install", {"activity_kind": "install"},
     Likeness(Kind.ACTIVITY, "differs only in letter case from Install (app_install)",
              Section.ACTIVITIES, "app_install")),
    ("session", {"activity_kind": "session"},
     Likeness(Kind.ACTIVITY, "Adjust's session", Section.ACTIVITIES, "app_open")),
    ("event", {"activity_kind": "event"},
     Likeness(Kind.ACTIVITY,
              "an event without its token: add event_token={event} to the callback URL")),
    ("subscription:renewal", {"activity_kind": "subscription"},
     Likeness(Kind.ACTIVITY, "a subscription of type renewal", Section.ACTIVITIES)),
]  # fmt: skip


@pytest.mark.parametrize(("subject", "parameters", "expected"), LIKENESSES)
def test_event_has_its_likely_meaning(
    subject: str, parameters: dict[str, str], expected: Likeness
) -> None:
    """An event's kind, meaning, and place in the file follow from its newest callback."""
    assert likeness(subject, parameters, APP) == expected


def test_token_longer_than_its_subject_is_a_token() -> None:
    """The subject in quarantine is the beginning of a long token."""
    assert kind_of("z" * 200, {"event_token": "z" * 300}) is Kind.TOKEN


def test_parameters_are_those_of_url_and_body() -> None:
    """The URL's parameters win, placeholders count as absent, and too many are none."""
    sent = parameters_of(b"a=1&b={b}", "application/json", b'{"a": "2", "c": 3}')
    assert sent == {"a": "1", "c": "3"}
    assert parameters_of(b"&".join(b"a%d=1" % n for n in range(4_001)), "", b"") == {}
    assert parameters_of(b"a=1", "text/plain", b"\xff") == {"a": "1"}


def dropped(reason: str, subject: str, query: bytes) -> Dropped:
    """A row of quarantine."""
    return Dropped(
        key=1, received_at=AT, vendor="adjust", app_token="abc123token", workspace_id="ws_test",
        reason=reason, subject=subject, query=query,
    )  # fmt: skip


LINES = [
    (dropped("unmapped_event", "zzzzzz", b"event_token=zzzzzz&activity_kind=event"),
     'zzzzzz        dropped    unmapped_event: add  zzzzzz = "..."  to events'),
    (dropped("unmapped_event", "a:b", b"activity_kind=a"),
     'a:b           dropped    unmapped_event: add  "a:b" = "..."  to activities'),
    (dropped("unmapped_event", "", b"adid=1"),
     f"-             dropped    unmapped_event: {NO_TOKEN}"),
    (dropped("unfilled_placeholder", "{event}", b"event_token={event}"),
     f"{{event}}       dropped    unfilled_placeholder: {REMEDIES['unfilled_placeholder']}"),
    (dropped("unmapped_event", "click", b"activity_kind=click"),
     'click         dropped    unmapped_event: add  "click"  to ignore, or map it in activities'),
    (dropped("unknown_app", "abc", b"app_token=abc&event_token=g3mz3t"),
     f"g3mz3t        dropped    unknown_app: {REMEDIES['unknown_app'].format(subject='abc')}"),
    (dropped("invalid_timestamp", "{0}", b"activity_kind=install&created_at={0}"),
     "install       dropped    invalid_timestamp: created_at={0} is no time, too old, or ahead"),
    (dropped("malformed", "malformed_body", b""),
     "-             dropped    malformed: answered 400, malformed_body"),
    (dropped("refused", "purchase", b""),
     "purchase      dropped    refused: the database refuses the row, see the gateway's log"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), LINES)
def test_drop_is_a_line_with_its_remedy(row: Dropped, expected: str) -> None:
    """The line of a drop has its time, vendor, app and subject, and what to do about it."""
    text = text_of(line_of(row, NO_APPS, show_ids=False))
    assert text == f"16:02:14  adjust    abc123token   {expected}"


def test_rejected_request_is_a_line_with_its_hint() -> None:
    """The line of a rejected request has the status that was answered, the hint, the address."""
    row = Rejected(
        key=1, received_at=AT, vendor="adjust", reason="wrong_secret", address="192.0.2.1",
        hint="wrong secret: 15 characters, configured are 16",
    )  # fmt: skip
    assert text_of(line_of(row, NO_APPS, show_ids=False)) == (
        "16:02:14  adjust    -             -             401        "
        "wrong secret: 15 characters, configured are 16, from 192.0.2.1"
    )
    unknown = replace(row, vendor="", reason="unknown_vendor", hint="")
    assert text_of(line_of(unknown, NO_APPS, show_ids=False)) == (
        "16:02:14  -         -             -             404        unknown vendor, from 192.0.2.1"
    )


def test_rows_left_out_are_a_line() -> None:
    """The number of rows that were left out is a line of its own."""
    line = Line(outcome="written", left_out=9_950)
    assert text_of(line) == "         ... and 9,950 more written"
