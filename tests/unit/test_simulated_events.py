"""Simulated events share all parts of an event ID but one, and become the rows that they expect."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from random import Random
from urllib.parse import parse_qs
from uuid import UUID

import msgspec
import pytest

import adapters
from app import normalize
from app.event import Event
from app.workspaces import Workspaces
from bench.testbed.callbacks import WORKSPACES, time_text
from bench.testbed.deliveries import (
    MIX,
    SHARES,
    Delivery,
    EventGenerator,
    EventKind,
    SimulatedEvent,
)
from bench.testbed.rows import Row, differences, number_in
from tests.adapter_cases import VENDORS, callback_of

SEED = 7
EVENTS = 6_000
GENERATOR = EventGenerator(
    SEED,
    SHARES | {EventKind.REDELIVERED: 300, EventKind.STABLE: 600, EventKind.POISON: 100},
    vendors=MIX,
)
OWN_APP, OWN_NAMES = "game4ndroid1", ("order_id", "order_line")
# The parts of an event ID in which events may differ that share what is sent beside it.
NOT_SHARED = {"second", "millisecond", "microsecond", "stable ID", "its second name"}
MICROSECOND = timedelta(microseconds=1)
MOMENT = datetime(2024, 3, 1, 23, 59, 59, tzinfo=UTC)
FORMS = {
    "seconds": r"\d{10}",
    "milliseconds": r"\d{13}",
    "seconds with a fraction": r"\d{10}\.\d+",
    "UTC without a mark": r"\S{10}[T ][^Z+ -]+",
    "Z": r".+Z",
    "Z and an offset": r".+Z\+0530",
    "east": r".+\d\+0[25]:[03]0",
    "west": r".+\d-08:00",
    "a space for the +": r".+\d 0200",
}


@cache
def simulated() -> list[SimulatedEvent]:
    """The events that have a row."""
    events = map(GENERATOR.event, range(EVENTS))
    return [event for event in events if event.row is not None]


def poison() -> list[SimulatedEvent]:
    """The events that the database refuses."""
    events = map(GENERATOR.event, range(EVENTS))
    return [event for event in events if event.refused is not None]


def query_of(delivery: Delivery) -> bytes:
    """The query of a delivery."""
    return delivery.request.split(b" ", 2)[1].partition(b"?")[2]


def parsed(folder: Path, events: Iterable[SimulatedEvent]) -> list[list[Event]]:
    """The canonical event of each delivery, as the adapters return it, by event."""
    file = folder / "workspaces.toml"
    file.write_text(WORKSPACES)
    workspaces = Workspaces(file, adapters.load())

    def parse(delivery: Delivery, row: Row) -> Event:
        head, _, body = delivery.request.partition(b"\r\n\r\n")
        lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        content_type = lines.get(b"Content-Type", b"").decode()
        app = workspaces.find(row.vendor, row.app_token)
        assert app is not None
        vendor = VENDORS[row.vendor]
        event = vendor.parse(callback_of(query_of(delivery), body, content_type, vendor), app)
        assert isinstance(event, Event), event
        return event

    return [
        [parse(delivery, row) for delivery in event.deliveries]
        for event in events
        if (row := event.row or event.refused) is not None
    ]


def assert_is(found: Event, expected: Row) -> None:
    """Fail unless an event of the adapters becomes the expected row."""
    row = msgspec.structs.asdict(found) | {"event_id": UUID(bytes=found.event_id)}
    assert not list(differences(row, expected)), (found, expected)
    assert found.has_stable_id is expected.has_stable_id


def test_every_delivery_becomes_an_expected_row(tmp_path: Path) -> None:
    """Each delivery is parsed to a version of the row, and to its event's number."""
    events = simulated()
    for event, deliveries in zip(events, parsed(tmp_path, events), strict=True):
        assert event.row is not None
        for delivery in deliveries:
            assert_is(delivery, event.row)
            assert number_in(delivery.properties) == event.number


def test_refused_events_are_those_of_their_callbacks(tmp_path: Path) -> None:
    """An event in quarantine is the one that is sent; a third of them has a stable ID."""
    events = poison()
    for event, [found] in zip(events, parsed(tmp_path, events), strict=True):
        assert event.refused is not None
        assert_is(found, event.refused)
    stable = sum(event.refused.has_stable_id for event in events if event.refused)
    assert 0.2 < stable / len(events) < 0.45


def test_event_id_is_that_of_the_event(tmp_path: Path) -> None:
    """All deliveries of an event have one ID, and no two events share one."""
    events = parsed(tmp_path, simulated())
    ids = [{delivery.event_id for delivery in deliveries} for deliveries in events]
    assert {len(of_one) for of_one in ids} == {1}
    assert len(set.union(*ids)) == len(ids)


def stable_id(row: Row) -> Sequence[str]:
    """The stable ID of a row, from its properties as docs/contract.md has it; empty without one."""
    sent = row.versions[0].properties
    if row.vendor == "branch":
        names: tuple[str, ...] = ("id",)
    elif row.vendor == "appsflyer":
        names, sent = ("af_order_id",), msgspec.json.decode(sent["event_value"])
    elif row.app_token == OWN_APP:
        names = OWN_NAMES if sent.keys() >= {*OWN_NAMES} else ("receipt_id",)
    else:
        names = ("transaction_id",) if "transaction_id" in sent else ("deduplication_id",)
    return [sent[name] for name in names if name in sent]


def name_of(row: Row) -> Sequence[str]:
    """The token of a row; or its kind, with the subtype where it has one."""
    sent = row.versions[0].properties
    names = {
        "branch": ("name",),
        "appsflyer": ("event_name",),
        "adjust": ("event_token",) if "event_token" in sent else ("activity_kind",),
    }
    return [sent[name] for name in (*names[row.vendor], "subscription_event_type") if name in sent]


def identity(event: SimulatedEvent) -> dict[str, Hashable]:
    """The parts of an event ID, as docs/contract.md lists them."""
    row, point = event.row, event.identity
    assert row is not None
    assert point is not None
    stable = stable_id(row)
    user = next(iter(point.user.columns.items()), ("device", str(event.number)))
    if row.vendor == "branch" or (user[0] == "device" and stable and is_own(row)):
        user = ("nobody", "")
    parts: dict[str, Hashable] = {
        "vendor": row.vendor,
        "app": row.app_token,
        "user kind": user[0],
        "user": user[1],
        "type": row.event_type,
    }
    assert bool(stable) is row.has_stable_id
    if stable:
        return parts | {"stable ID": stable[0], "its second name": "".join(stable[1:])}
    name, occurred_at = name_of(row), row.versions[0].occurred_at
    fraction = occurred_at.microsecond
    return parts | {
        "second": occurred_at.replace(microsecond=0),
        "millisecond": fraction // 1_000,
        "microsecond": fraction % 1_000,
        "token": name[0],
        "subtype": "".join(name[1:]),
    }


def is_own(row: Row) -> bool:
    """Whether its app lists the names of its stable IDs."""
    return (row.vendor, row.app_token) == ("adjust", OWN_APP)


def test_events_differ_in_each_part_alone() -> None:
    """For each part of either kind of ID there are pairs of events that differ in it alone."""
    pairs: Counter[tuple[bool, str]] = Counter()
    groups: defaultdict[tuple[bool, str, Hashable], set[Hashable]] = defaultdict(set)
    for parts in map(identity, simulated()):
        for name in parts:
            others = tuple((n, value) for n, value in parts.items() if n != name)
            groups["stable ID" in parts, name, others].add(parts[name])
    for (is_stable, name, _), values in groups.items():
        pairs[is_stable, name] += len(values) > 1
    shared = ("vendor", "app", "user kind", "user", "type")
    times = ("second", "millisecond", "microsecond")
    for place in [(False, n) for n in (*shared, *times, "token", "subtype")]:
        assert pairs[place] > 8, (place, pairs)
    for place in [(True, n) for n in (*shared[1:], "stable ID", "its second name")]:
        assert pairs[place] > 3, (place, pairs)


def test_names_beside_a_stable_id_do_not_count() -> None:
    """Events share what is sent beside their stable ID; deliveries of one event differ in it."""
    shared: defaultdict[tuple[bool, bool, str, Hashable], set[int]] = defaultdict(set)
    other: Counter[str] = Counter()
    for event in simulated():
        assert event.row is not None
        if event.row.vendor != "adjust":
            continue
        sent, *more = (version.properties for version in event.row.versions)
        parts = {n: v for n, v in identity(event).items() if n not in NOT_SHARED}
        for name in ("transaction_id", "deduplication_id", "order_id", "receipt_id"):
            if name in sent:
                place = event.row.has_stable_id, is_own(event.row), name
                shared[*place, (sent[name], *parts.items())].add(event.number)
                other[name] += any(again[name] != sent[name] for again in more)
    found = Counter(place[:3] for place, numbers in shared.items() if len(numbers) > 1)
    for expected in (
        (True, False, "deduplication_id"),
        (True, True, "transaction_id"),
        (True, True, "order_id"),
        (True, True, "receipt_id"),
        (False, True, "order_id"),
        (False, True, "deduplication_id"),
    ):
        assert found[expected] > 3, (expected, found)
    assert min(other.values()) > 3, other


def test_devices_without_an_id_need_none_beside_a_stable_id_of_the_app() -> None:
    """Their deliveries differ in other parameters: nobody is the user."""
    events = [
        event.row
        for event in simulated()
        if event.row and is_own(event.row) and event.row.has_stable_id
    ]
    devices = [row for row in events if not (row.user_id or row.adid or row.gps_adid or row.idfa)]
    assert len(devices) > 10
    for row in devices:
        assert len({version.properties["delivery"] for version in row.versions}) > 1


@pytest.mark.parametrize("fraction", [0, 1_000, 999_000, 1, 1_001, 120_000, 999_999])
def test_each_form_of_a_time_is_the_same_time(fraction: int) -> None:
    """Each form has the whole fraction: none is in seconds alone where there is one."""
    moment = MOMENT + fraction * MICROSECOND
    texts = {time_text(moment, Random(seed)) for seed in range(400)}  # noqa: S311 - repeatable
    assert {normalize.time(text) for text in texts} == {moment}
    found = {name for name, form in FORMS.items() if any(re.fullmatch(form, t) for t in texts)}
    lacking = {"seconds"} if fraction else {"seconds with a fraction"}
    assert found == FORMS.keys() - lacking - ({"milliseconds"} if fraction % 1_000 else set())


def test_times_are_sent_in_each_form() -> None:
    """The callbacks of times with a fraction have each form that can carry it."""
    sent = {
        text
        for event in simulated()
        if event.row and event.row.versions[0].occurred_at.microsecond
        for delivery in event.deliveries
        for text in parse_qs(query_of(delivery).decode()).get("created_at", [])
    }
    found = {name for name, form in FORMS.items() if any(re.fullmatch(form, t) for t in sent)}
    assert found == FORMS.keys() - {"seconds"}


def test_messages_have_times_of_other_zones() -> None:
    """Some messages of AppsFlyer have their time in the zone of the app alone."""
    zones = Counter(
        version.properties.get("event_time_selected_timezone", "")[-5:]
        for event in simulated()
        if event.row and event.row.vendor == "appsflyer"
        for version in event.row.versions
    )
    assert zones.keys() == {"", "+0200", "+0530", "-0800"}
    assert min(zones.values()) > 20
