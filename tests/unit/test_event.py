"""The event ID: callbacks that are one event have one ID, and no others do."""

import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.event import EPOCH, digest, event_id

MOMENT = datetime(2025, 6, 21, 10, tzinfo=UTC)
PARTS: dict[str, Any] = {
    "vendor": "adjust",
    "app_token": "abc123token",
    "user": ("user_id", "usr_abc123"),
    "event_type": "purchase",
    "occurred_at": MOMENT,
    "raw_event_id": "g3mz3t",
    "stable_id": None,
}
STABLE = {"stable_id": "GPA.3344-1"}
# An ID that changes here has to change in all stored events, too.
STORED = {
    "a derived ID": ({}, "b5d91a820ce0cc186e584ea246c29023"),
    "a stable ID": (STABLE, "8f6a51dcb932ccffb1cd8a8f984301f5"),
    "text beyond ASCII": (
        {"user": ("adid", "日本"), "event_type": "café"},
        "33f43629946ba28d18d895e519d0b942",
    ),
    "before 1970": (
        {"occurred_at": datetime(1969, 12, 31, 23, 59, 59, 1, UTC)},
        "9be40830fb187448cf7e46ad3f648941",
    ),
}


def id_of(**parts: Any) -> bytes:
    """The ID of one event, but for `parts`."""
    return event_id(**(PARTS | parts))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vendor", "adjust2"),
        ("app_token", "Abc123token"),
        ("user", ("adid", "usr_abc123")),
        ("user", ("user_id", "usr_abc124")),
        ("event_type", "purchase "),
        ("occurred_at", MOMENT + timedelta(microseconds=1)),
        ("raw_event_id", ""),
        ("stable_id", "GPA.3344-1"),
        ("stable_id", ""),
    ],
)
def test_every_part_makes_another_event(name: str, value: object) -> None:
    """Another vendor, app, user, kind of user, type, microsecond or raw ID is another event."""
    assert id_of(**{name: value}) != id_of()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vendor", "adjust2"),
        ("app_token", "Abc123token"),
        ("user", ("adid", "usr_abc123")),
        ("event_type", "signup"),
        ("stable_id", "GPA.3344-2"),
    ],
)
def test_stable_id_belongs_to_its_owner(name: str, value: object) -> None:
    """A stable ID counts only for its own vendor, app, user and event type."""
    assert id_of(**(STABLE | {name: value})) != id_of(**STABLE)


def test_stable_id_at_another_time_is_the_same_event() -> None:
    """With a stable ID, neither the time nor the raw event ID makes another event of it."""
    later = {"occurred_at": MOMENT + timedelta(days=1), "raw_event_id": "bkrfgq"}
    assert id_of(**STABLE, **later) == id_of(**STABLE)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"vendor": "ab", "app_token": "c"}, {"vendor": "a", "app_token": "bc"}),
        ({"app_token": "x", "user": ("y", "z")}, {"app_token": "xy", "user": ("", "z")}),
        ({"user": ("adid", "x")}, {"user": ("adi", "dx")}),
        ({"user": ("a", "bpurchase"), "event_type": ""}, {"user": ("a", "b")}),
        ({"event_type": "a", "raw_event_id": "b"}, {"event_type": "", "raw_event_id": "ab"}),
        ({"raw_event_id": "GPA.3344-1"}, {"raw_event_id": "", **STABLE}),
        ({"raw_event_id": "stable"}, {"stable_id": "stable"}),
        ({"vendor": "a\x00b"}, {"vendor": "a"}),
    ],
)
def test_parts_do_not_run_into_each_other(one: dict[str, Any], other: dict[str, Any]) -> None:
    """Text that moves from one part to the next is another event."""
    assert id_of(**one) != id_of(**other)


def test_instant_in_another_zone_is_the_same_event() -> None:
    """An instant is the same event however its offset is written."""
    elsewhere = MOMENT.astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert id_of(occurred_at=elsewhere) == id_of()


texts = st.text("aé", max_size=2)  # few, so that some are the same
identities = st.fixed_dictionaries(
    {
        "vendor": texts,
        "app_token": texts,
        "user": st.tuples(texts, texts),
        "event_type": texts,
        "occurred_at": st.integers(0, 2**32).map(lambda s: EPOCH + timedelta(seconds=s)),
        "raw_event_id": texts,
        "stable_id": st.none() | texts,
    }
)


def meaning(parts: dict[str, Any]) -> dict[str, Any]:
    """The parts that count."""
    ignored = ("occurred_at", "raw_event_id") if parts["stable_id"] is not None else ()
    return {name: value for name, value in parts.items() if name not in ignored}


@given(identities, identities)
def test_two_events_have_one_id_only_if_their_parts_are_equal(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """Two events have one ID exactly if every part that counts is the same."""
    assert (event_id(**one) == event_id(**other)) == (meaning(one) == meaning(other))
    assert len(event_id(**one)) == 16


nested = st.recursive(texts | st.integers(-(2**63), 2**63), st.lists, max_leaves=6)


@given(nested, nested)
def test_two_lists_of_parts_never_share_a_digest(one: object, other: object) -> None:
    """No two lists of parts have the same digest, at any nesting."""
    assert (digest(one) == digest(other)) == (one == other)


@pytest.mark.parametrize(("parts", "stored"), STORED.values(), ids=STORED)
def test_ids_of_stored_events_are_constant(parts: dict[str, Any], stored: str) -> None:
    """IDs like these are stored: if one changes, a redelivery becomes a second row."""
    assert id_of(**parts).hex() == stored


def test_ids_are_the_same_in_every_process() -> None:
    """Nothing of a process (hash seed, locale, time zone) gets into an ID."""
    script = (
        "from tests.unit.test_event import *; "
        "print(*[id_of(**p).hex() for p, _ in STORED.values()])"
    )
    for seed, zone in (("1", "Asia/Kathmandu"), ("2", "America/St_Johns")):
        output = subprocess.check_output(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C"},
            text=True,
        )
        assert output.split() == [stored for _, stored in STORED.values()]
