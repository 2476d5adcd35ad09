"""Simulated events share all parts of an event ID but one, and become the rows that they expect."""

from collections import Counter, defaultdict
from functools import cache
from pathlib import Path
from uuid import UUID

import msgspec

import adapters
from app.event import Event
from app.workspaces import Workspaces
from bench.testbed.callbacks import WORKSPACES
from bench.testbed.deliveries import MIX, SHARES, EventGenerator, EventKind, SimulatedEvent
from bench.testbed.rows import Row, differences, number_in
from tests.adapter_cases import VENDORS, callback_of

SEED = 7
EVENTS = 6_000
GENERATOR = EventGenerator(
    SEED, SHARES | {EventKind.REDELIVERED: 300, EventKind.STABLE: 400}, vendors=MIX
)


@cache
def simulated() -> list[SimulatedEvent]:
    """The events that have a row."""
    events = map(GENERATOR.event, range(EVENTS))
    return [event for event in events if event.row is not None]


def parsed(folder: Path) -> list[list[Event]]:
    """The canonical event of each delivery, as the adapters return it, by event."""
    file = folder / "workspaces.toml"
    file.write_text(WORKSPACES)
    workspaces = Workspaces(file, adapters.load())

    def parse(request: bytes, row: Row) -> Event:
        head, _, body = request.partition(b"\r\n\r\n")
        query = head.split(b" ", 2)[1].partition(b"?")[2]
        lines = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        content_type = lines.get(b"Content-Type", b"").decode()
        app = workspaces.find(row.vendor, row.app_token)
        assert app is not None
        vendor = VENDORS[row.vendor]
        event = vendor.parse(callback_of(query, body, content_type, vendor), app)
        assert isinstance(event, Event), event
        return event

    return [
        [parse(delivery.request, event.row) for delivery in event.deliveries]
        for event in simulated()
        if event.row is not None
    ]


def test_every_delivery_becomes_an_expected_row(tmp_path: Path) -> None:
    """Each delivery is parsed to a version of the row, and to its event's number."""
    for event, deliveries in zip(simulated(), parsed(tmp_path), strict=True):
        assert event.row is not None
        for delivery in deliveries:
            row = msgspec.structs.asdict(delivery) | {"event_id": UUID(bytes=delivery.event_id)}
            assert not list(differences(row, event.row))
            assert delivery.has_stable_id is event.row.has_stable_id
            assert number_in(delivery.properties) == event.number


def test_event_id_is_that_of_the_event(tmp_path: Path) -> None:
    """All deliveries of an event have one ID, and no two events share one."""
    ids = [{delivery.event_id for delivery in deliveries} for deliveries in parsed(tmp_path)]
    assert {len(of_one) for of_one in ids} == {1}
    assert len(set.union(*ids)) == len(ids)


def identity(event: SimulatedEvent) -> dict[str, object]:
    """The parts of an event ID, as docs/contract.md lists them."""
    row, point = event.row, event.identity
    assert row is not None
    assert point is not None
    user = next(iter(point.user.columns.items()), ("device", str(event.number)))
    parts: dict[str, object] = {
        "vendor": row.vendor,
        "app": row.app_token,
        "user kind": user[0],
        "user": user[1],
        "type": row.event_type,
    }
    if row.vendor == "branch":
        parts |= {"user kind": "", "user": ""}
    if row.has_stable_id:
        return parts | {"stable ID": point.stable_id}
    return parts | {"second": row.versions[0].occurred_at, "token": point.raw_event_id}


def test_events_differ_in_each_part_alone() -> None:
    """For each part of either kind of ID there are pairs of events that differ in it alone."""
    pairs: Counter[tuple[bool, str]] = Counter()
    groups: defaultdict[tuple[bool, str, object], set[object]] = defaultdict(set)
    for parts in map(identity, simulated()):
        for name in parts:
            others = tuple(sorted((n, str(v)) for n, v in parts.items() if n != name))
            groups["stable ID" in parts, name, others].add(parts[name])
    for (is_stable, name, _), values in groups.items():
        pairs[is_stable, name] += len(values) > 1
    shared = ("vendor", "app", "user kind", "user", "type")
    for place in [(False, n) for n in (*shared, "second", "token")]:
        assert pairs[place] > 20, (place, pairs)
    for place in [(True, n) for n in (*shared[1:], "stable ID")]:
        assert pairs[place] > 3, (place, pairs)
