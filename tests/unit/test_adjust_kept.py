"""Adjust: the parameters that are kept of a callback, and the words for nothing."""

from dataclasses import dataclass

import msgspec
import pytest

from adapters._names import USERS
from app import normalize
from app.event import App, Drop, DropReason, Event
from bench.testbed.callbacks import EVENTS
from tests.unit.test_adjust import GOOD, Changes, event, parse
from tests.vectors import APP

APP_OF_NOTHING = App(workspace_id="ws_test", vendor="adjust", app_token=APP, events=EVENTS)
SENT = {
    "tracker_name": "Network::Campaign 日本", "idfv": "AB-1", "Product Name": " boots ",
    "partner_parameters": '{"level":"9"}', "revenue": "499", "currency": "usd",
    "environment": "sandbox", "event_name": "Purchase", "ip_address": "10.0.0.1",
    "transaction_id": "t-1", "x" * 300: "long name", "empty": "", "unfilled": "{unfilled}",
}  # fmt: skip
KEPT = {name: value.strip() for name, value in SENT.items() if name not in ("empty", "unfilled")}
ALWAYS = {"event_token": "g3mz3t", "activity_kind": "event"}


def app_with(**settings: object) -> App:
    """An app that differs from one without any list in these."""
    return msgspec.structs.replace(APP_OF_NOTHING, **settings)


def test_everything_that_is_sent_is_kept() -> None:
    """Every parameter that is present is in `properties`, but for those with a column."""
    more = {**SENT, "": "no name", "secret": "rotated", "event": "another"}
    assert event(more, APP_OF_NOTHING).properties == KEPT | ALWAYS | {"event": "another"}
    nothing: dict[str, str | None] = dict.fromkeys(("revenue", "currency"))
    assert event(nothing, APP_OF_NOTHING).properties == ALWAYS
    alias: Changes = nothing | {"event_token": "{event_token}", "event": "bkrfgq"}
    assert event(alias, APP_OF_NOTHING).properties == ALWAYS | {"event_token": "bkrfgq"}


def test_keep_narrows_the_properties() -> None:
    """With `keep`, revenue and meaning are kept, the stable IDs, and the listed parameters."""
    app = app_with(keep=("Product Name", "user_id"), stable_id=("idfv", ("event_name", "unfilled")))
    names = {
        "Product Name", "idfv", "event_name", "revenue", "currency", "environment", "event_token",
        "activity_kind",
    }  # fmt: skip
    kept = event({**SENT, "os_name": "roku"}, app).properties
    assert kept == {n: (KEPT | ALWAYS)[n] for n in names} | {"os_name": "roku"}
    assert event({"user_id": "(null)"}, app).properties["user_id"] == "(null)"


def test_omitted_parameters_are_stored_nowhere() -> None:
    """An omitted parameter is in no column and not in `properties`; the event is the same one."""
    columns = ("user_id", "adid", "idfa", "gps_adid", "os_name", "country")
    app = app_with(omit=("ip_address", "Product Name", *columns))
    sent: Changes = {**SENT, "os_name": "roku"}
    narrow, wide = event(sent, app), event(sent, APP_OF_NOTHING)
    assert narrow.event_id == wide.event_id
    assert narrow.properties.keys() == wide.properties.keys() - {
        "ip_address", "Product Name", "os_name",
    }  # fmt: skip
    assert [getattr(narrow, column) for column in columns] == [None] * len(columns)
    assert "user_id" not in event({"user_id": "null"}, app).properties
    kept = app_with(omit=("ip_address",), keep=("ip_address", "idfv"))
    assert "ip_address" not in event(sent, kept).properties


WORDS = ["null", "nil", "none", "undefined", "nan", "n/a", "na", "unknown", "0", "-1"]
WORDS += ["anonymous", "guest", "object object"]
NOTHING = [*WORDS, "NULL", "None", "NaN", "(null)", "<null>", "[object Object]", "'nil'", '"0"']
NOTHING += ["`undefined`", "<nil>", "(Unknown)"]
SOMETHING = ["nullable", "((null))", "(null", "null)", "[null>", "0x", "10", "-10", "n", "a", "()"]
SOMETHING += [
    "guest1",
    "object",
    "[object]",
    "null null",
    "none." * 100,
    "''",
    "'",
    "[-]",
    "(00",
    "((00))",
]


@pytest.mark.parametrize("text", NOTHING)
def test_word_for_nothing_is_absent_and_kept_as_text(text: str) -> None:
    """It identifies no user, in no column and in no ID; the text stays under its own name."""
    assert normalize.identifier(text) is None
    for place, name in enumerate(USERS):
        rest: Changes = {n: None if i < place else GOOD[n] for i, n in enumerate(USERS)}
        without = event({**rest, name: None, "transaction_id": "t"}, APP_OF_NOTHING)
        found = event({**rest, name: text, "transaction_id": "t"}, APP_OF_NOTHING)
        assert getattr(found, name) is None
        assert found.properties[name] == text
        assert found.ignored == (name,)
        if place < len(USERS) - 1:  # the other identifiers still count
            assert found.event_id == without.event_id
    for stable in ("transaction_id", "deduplication_id"):
        found = event({stable: text}, APP_OF_NOTHING)
        assert (found.has_stable_id, found.ignored) == (False, (stable,))
        assert found.properties[stable] == text
        assert found.event_id == event({}, APP_OF_NOTHING).event_id


@pytest.mark.parametrize("text", SOMETHING)
def test_similar_words_identify(text: str) -> None:
    """A text that only resembles a word for nothing is an identifier like any other."""
    assert normalize.identifier(text) == text
    assert event({"user_id": text}, APP_OF_NOTHING).user_id == text
    assert event({"transaction_id": text}, APP_OF_NOTHING).has_stable_id


ZEROS = ["00000000-0000-0000-0000-000000000000", "0" * 32, "00", "-0-0"]
ZEROS += [f'"{ZEROS[0]}"', f"({ZEROS[0]})", "[00]", "<0-0>"]


@pytest.mark.parametrize("zeros", ZEROS)
def test_zeros_are_absent_and_not_kept(zeros: str) -> None:
    """All-zero identifiers are in no column, in no ID, and in no text."""
    for name in (*USERS, "transaction_id", "deduplication_id"):
        found = event({name: zeros}, APP_OF_NOTHING)
        assert (getattr(found, name, None), found.has_stable_id) == (None, False)
        assert name not in found.properties
        assert found.ignored == (name,)
    both = event({"transaction_id": "t", "deduplication_id": zeros}, APP_OF_NOTHING)
    assert (both.has_stable_id, both.ignored) == (True, ("deduplication_id",))
    assert "deduplication_id" not in both.properties
    assert both.event_id == event({"transaction_id": "t"}, APP_OF_NOTHING).event_id
    partly = event({"b": zeros}, app_with(stable_id=(("a", "b"),)))
    assert (partly.has_stable_id, partly.ignored) == (False, ("b",))
    assert "b" not in partly.properties


@pytest.mark.parametrize("country", ["germany", "u", "u1", "äö", "null"])
def test_country_that_is_no_code_is_kept_as_text(country: str) -> None:
    """A country has a column where it is a code, else it stays as it was sent."""
    found = event({"country": country}, APP_OF_NOTHING)
    assert (found.country, found.properties["country"]) == (None, country)
    assert "country" not in event({}, APP_OF_NOTHING).properties


@dataclass(frozen=True)
class Kind:
    """An activity as Adjust sends it, and its outcome under an app's mapping."""

    sent: dict[str, str | None]
    outcome: str


KIND: dict[str, str | None] = {"event_token": None, "activity_kind": "subscription"}
RENEWAL = KIND | {"subscription_event_type": "renewal"}
MAPPED = app_with(
    activities={"subscription:renewal": "renewed", "subscription": "other", "install": "installed"},
    ignore=("click", "subscription:cancellation", "n0t0k3n", "session"),
)
KINDS = [
    Kind(RENEWAL, "renewed"),
    Kind(KIND, "other"),
    Kind(KIND | {"subscription_event_type": "activation"}, "other"),
    Kind(KIND | {"subscription_event_type": "{subscription_event_type}"}, "other"),
    Kind({"event_token": None, "activity_kind": "install", "subscription_event_type": "renewal"},
         "installed"),
    Kind(KIND | {"subscription_event_type": "cancellation"}, "ignored subscription:cancellation"),
    Kind({"event_token": None, "activity_kind": "click"}, "ignored click"),
    Kind({"event_token": "n0t0k3n"}, "ignored n0t0k3n"),
    Kind({"event_token": "n0t0k3n", "created_at": "abc"}, "ignored n0t0k3n"),
    Kind({"event_token": "{event}", "activity_kind": "session"}, "ignored session"),
    Kind({"event_token": "g3mz3t", "activity_kind": "click"}, "purchase"),
    Kind({"event_token": "zzz", "activity_kind": "click"}, "unmapped_event zzz"),
    Kind({"event_token": None, "activity_kind": "Click"}, "unmapped_event Click"),
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.outcome)
def test_activity_is_looked_up_with_its_subtype_first(kind: Kind) -> None:
    """The token, else the kind with its subtype, else the kind, is ignored, mapped, or neither."""
    found = parse(kind.sent, MAPPED)
    outcome, _, subject = kind.outcome.partition(" ")
    if isinstance(found, Event):
        assert found.event_type == outcome
    else:
        assert found == Drop(DropReason(outcome), subject)
