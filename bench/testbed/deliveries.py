"""Generated events of a simulated vendor: their deliveries, and the row expected of each.

An event depends on the seed and its number alone, and can be generated again at any time.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from random import Random

from bench.testbed.callbacks import APPS, EVENTS, any_request, parameters, time_text

# Rules of the database alone, which no gateway knows of: a check, a value that does not convert,
# and an index that takes no long text. Each refuses a row with another error.
_ENVIRONMENT = "(properties ->> 'environment')"
POISON_RULES = (
    f"ALTER TABLE events ADD CHECK ({_ENVIRONMENT} IS DISTINCT FROM 'forbidden')",
    f"ALTER TABLE events ADD CHECK (nullif({_ENVIRONMENT}, 'production')::numeric IS NULL)",
    "CREATE INDEX ON events ((properties ->> 'tracker_name'))",
)
# Fixed: the same seed sends the same callbacks on any day.
FIRST_DAY = datetime(2024, 3, 1, tzinfo=UTC)
_DAY_S = 86_400
_LATE_DAYS_MAX = 5
_PROBES_DAYS = 10
# The parameters that the gateway keeps in `properties`.
_KEPT = {
    "revenue", "revenue_float", "currency", "event_token", "activity_kind", "environment",
    "tracker_name", "transaction_id",
}  # fmt: skip


class EventKind(Enum):
    """The peculiarity of a generated event."""

    PLAIN = "plain"
    REDELIVERED = "redelivered"  # later, in another form
    CONTESTED = "contested"  # at the same moment, to different processes
    REPEATED = "repeated"  # at the same moment, to one process
    HUNG_UP = "hung_up"  # the caller closes half-way, and retries
    STABLE = "stable"  # with a stable ID, and redelivered with another time
    UNMAPPED = "unmapped"  # an event token that no app has mapped
    BAD_TIME = "bad_time"
    POISON = "poison"  # the database refuses its row


# Of a thousand events.
SHARES: dict[EventKind, int] = {
    EventKind.PLAIN: 620,
    EventKind.REDELIVERED: 80,
    EventKind.CONTESTED: 60,
    EventKind.REPEATED: 40,
    EventKind.HUNG_UP: 60,
    EventKind.STABLE: 80,
    EventKind.UNMAPPED: 30,
    EventKind.BAD_TIME: 20,
    EventKind.POISON: 10,
}
DROPPED_KINDS = frozenset({EventKind.UNMAPPED, EventKind.BAD_TIME, EventKind.POISON})


@dataclass(frozen=True)
class Delivery:
    """One callback of an event, with its retries.

    `after` is the number of other events that begin before it, `process` the number of the gateway
    (modulo the number of gateways), `hangs_up_after` the share of the request that is sent before
    the caller closes; None if it waits for the answer.
    """

    request: bytes
    after: int
    process: int
    hangs_up_after: float | None = None


@dataclass(frozen=True)
class Row:
    """The expected row; each of the times is right."""

    workspace_id: str
    app_token: str
    event_type: str
    occurred_at: frozenset[datetime]
    os_name: str
    country: str
    adid: str
    properties: Mapping[str, str]


@dataclass(frozen=True)
class SimulatedEvent:
    """One event of the vendor: its deliveries, and its row; None where it must be dropped."""

    number: int
    kind: EventKind
    deliveries: Sequence[Delivery]
    row: Row | None


@dataclass(frozen=True)
class EventGenerator:
    """Generates the events of one seed.

    From each number in `new_days` on, the events occur on a day without earlier events. From
    `probes_from` on, the events are plain, and occur on a day of their own.
    """

    seed: int
    shares: Mapping[EventKind, int] = field(default_factory=lambda: SHARES)
    new_days: Sequence[int] = ()
    probes_from: int = sys.maxsize

    def event(self, number: int) -> SimulatedEvent:
        """Return the event of this number, always the same."""
        random = Random(self.seed * 1_000_003 + number)  # noqa: S311 - repeatable
        kind = random.choices(list(self.shares), list(self.shares.values()))[0]
        if number >= self.probes_from:
            kind = EventKind.PLAIN
        token = random.choice(list(EVENTS))
        app = random.choice(list(APPS))
        occurred_at = self._occurred_at(number, random)
        sent = parameters(number, random, app=app, token=token)
        if kind is EventKind.STABLE:
            sent["transaction_id"] = f"t{number}"
        kept = {name: value for name, value in sent.items() if name in _KEPT}
        times = [occurred_at]
        if kind is EventKind.STABLE:
            # Earlier: a later time may be on a new day.
            times += [occurred_at - timedelta(seconds=random.randint(1, 90_000))]
        row = Row(
            workspace_id=APPS[app],
            app_token=app,
            event_type=EVENTS[token],
            occurred_at=frozenset(times),
            os_name=sent["os_name"],
            country=sent["country"].upper(),
            adid=sent["adid"],
            properties=kept,
        )
        if kind in DROPPED_KINDS:
            _spoil(sent, kind, random)
        deliveries = _DELIVERIES[kind](sent, times, random)
        return SimulatedEvent(number, kind, deliveries, None if kind in DROPPED_KINDS else row)

    def day(self, number: int) -> datetime:
        """Return the day of the event of this number."""
        return FIRST_DAY + timedelta(days=bisect_right(self.new_days, number))

    def _occurred_at(self, number: int, random: Random) -> datetime:
        if number >= self.probes_from:
            return FIRST_DAY - timedelta(days=_PROBES_DAYS, seconds=random.randrange(_DAY_S))
        late_days = 0
        if random.random() < 0.01:  # noqa: PLR2004 - one of a hundred comes late
            late_days = random.randint(1, _LATE_DAYS_MAX)
        return self.day(number) + timedelta(days=-late_days, seconds=random.randrange(_DAY_S))


def _spoil(sent: dict[str, str], kind: EventKind, random: Random) -> None:
    """Change a callback so that it must be dropped."""
    if kind is EventKind.UNMAPPED:
        sent["event_token"] = "n0b0dy"  # noqa: S105 - a token of an event
    elif kind is EventKind.POISON:
        rule = random.randrange(len(POISON_RULES))
        if rule == 0:
            sent["environment"] = "forbidden"
        elif rule == 1:
            sent["environment"] = "number"
        else:
            # Random text does not compress: it exceeds the size of an index entry.
            sent["tracker_name"] = random.randbytes(6_000).hex()


def _spoilt_time(random: Random) -> str:
    return random.choice(("", "soon", "{created_at}", "2026-02-30T12:00:00Z", "99999999999999"))


def _plain(sent: dict[str, str], times: Sequence[datetime], random: Random) -> list[Delivery]:
    return [_delivery(sent, times[0], random)]


def _redelivered(sent: dict[str, str], times: Sequence[datetime], random: Random) -> list[Delivery]:
    again = random.randint(1, 2)
    return [
        _delivery(sent, times[0], random, after=turn * random.randint(1, 400))
        for turn in range(again + 1)
    ]


def _contested(sent: dict[str, str], times: Sequence[datetime], random: Random) -> list[Delivery]:
    first = random.randrange(60)
    return [
        replace(_delivery(sent, times[0], random), process=first + place)
        for place in range(random.randint(2, 4))
    ]


def _repeated(sent: dict[str, str], times: Sequence[datetime], random: Random) -> list[Delivery]:
    process = random.randrange(60)
    return [
        replace(_delivery(sent, times[0], random), process=process)
        for _ in range(random.randint(2, 5))
    ]


def _hung_up(sent: dict[str, str], times: Sequence[datetime], random: Random) -> list[Delivery]:
    share = random.choice((random.random(), 1.0))
    return [replace(_delivery(sent, times[0], random), hangs_up_after=share)]


def _stable(sent: dict[str, str], times: Sequence[datetime], random: Random) -> list[Delivery]:
    after = random.choice((0, random.randint(1, 400)))
    return [
        _delivery(sent, times[0], random),
        _delivery(sent, times[1], random, after=after),
    ]


def _bad_time(sent: dict[str, str], _: Sequence[datetime], random: Random) -> list[Delivery]:
    return [Delivery(any_request(sent | {"created_at": _spoilt_time(random)}, random), 0, 0)]


_DELIVERIES: Mapping[
    EventKind, Callable[[dict[str, str], Sequence[datetime], Random], list[Delivery]]
] = {
    EventKind.PLAIN: _plain,
    EventKind.REDELIVERED: _redelivered,
    EventKind.CONTESTED: _contested,
    EventKind.REPEATED: _repeated,
    EventKind.HUNG_UP: _hung_up,
    EventKind.STABLE: _stable,
    EventKind.UNMAPPED: _plain,
    EventKind.BAD_TIME: _bad_time,
    EventKind.POISON: _plain,
}


def _delivery(
    sent: dict[str, str], occurred_at: datetime, random: Random, after: int = 0
) -> Delivery:
    names = list(sent)
    if random.random() < 0.5:  # noqa: PLR2004 - half of them in another order
        random.shuffle(names)
    ordered = {name: sent[name] for name in names} | {"created_at": time_text(occurred_at, random)}
    return Delivery(any_request(ordered, random), after, random.randrange(60))
