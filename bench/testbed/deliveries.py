"""Generated events of a simulated vendor: their deliveries, and the row expected of each.

An event depends on the seed and its number alone, and can be generated again at any time.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import partial
from random import Random

from bench.testbed import drops
from bench.testbed.callbacks import APPS, EVENTS, any_request, parameters, time_text
from bench.testbed.drops import Drop, Kept
from bench.testbed.messages import expected_properties, message_request
from bench.testbed.periods import Period, moment_of

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


# The request of a delivery for an event at this time.
Send = Callable[[datetime, Random], bytes]


class EventKind(Enum):
    """The peculiarity of a generated event."""

    PLAIN = "plain"
    REDELIVERED = "redelivered"  # later, in another form
    CONTESTED = "contested"  # at the same moment, to different processes
    REPEATED = "repeated"  # at the same moment, to one process
    HUNG_UP = "hung_up"  # the caller closes half-way, and retries
    STABLE = "stable"  # with a stable ID, and redelivered with another time
    UNMAPPED = "unmapped"  # an event token that no app has mapped
    UNKNOWN_APP = "unknown_app"
    UNFILLED = "unfilled"  # a placeholder that was never replaced
    BAD_TIME = "bad_time"
    MALFORMED = "malformed"  # an unreadable body
    POISON = "poison"  # the database refuses its row
    IGNORED = "ignored"  # dropped on purpose
    TOO_LARGE = "too_large"  # for quarantine


# Of a thousand events.
SHARES: dict[EventKind, int] = {
    EventKind.PLAIN: 620,
    EventKind.REDELIVERED: 80,
    EventKind.CONTESTED: 60,
    EventKind.REPEATED: 40,
    EventKind.HUNG_UP: 60,
    EventKind.STABLE: 80,
    EventKind.UNMAPPED: 20,
    EventKind.UNKNOWN_APP: 5,
    EventKind.UNFILLED: 5,
    EventKind.BAD_TIME: 10,
    EventKind.MALFORMED: 5,
    EventKind.POISON: 10,
    EventKind.IGNORED: 4,
    EventKind.TOO_LARGE: 1,
}


# Shares of the vendors of a mix; only Adjust's callbacks are dropped.
ADJUST = {"adjust": 1}
MIX = {"adjust": 60, "appsflyer": 25, "branch": 15}


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

    vendor: str
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
    """One event of the vendor: its deliveries, and its row; None where it must be dropped.

    `kept` is its row in quarantine, of which each delivery has one; None where it has none.
    """

    number: int
    kind: EventKind
    deliveries: Sequence[Delivery]
    row: Row | None
    kept: Kept | None = None


@dataclass(frozen=True)
class EventGenerator:
    """Generates the events of one seed.

    From each number in `new_days` on, the events occur on a day without earlier events; `periods`
    have days of their own. So have plain and unmapped events, in turns, from `probes_from` on.
    """

    seed: int
    shares: Mapping[EventKind, int] = field(default_factory=lambda: SHARES)
    new_days: Sequence[int] = ()
    periods: Sequence[Period] = ()
    probes_from: int = sys.maxsize
    vendors: Mapping[str, int] = field(default_factory=lambda: ADJUST)

    def event(self, number: int) -> SimulatedEvent:
        """Return the event of this number, always the same."""
        random = Random(self.seed * 1_000_003 + number)  # noqa: S311 - repeatable
        kind = random.choices(list(self.shares), list(self.shares.values()))[0]
        if number >= self.probes_from:
            kind = EventKind.UNMAPPED if (number - self.probes_from) % 2 else EventKind.PLAIN
        token = random.choice(list(EVENTS))
        app = random.choice(list(APPS))
        periods = () if kind is EventKind.STABLE else self.periods
        occurred_at = moment_of(periods, number, random) or self._occurred_at(number, random)
        sent = parameters(number, random, app=app, token=token)
        if kind in _DROPS:
            return _dropped(
                number, kind, sent | {"created_at": time_text(occurred_at, random)}, random
            )
        if kind is EventKind.STABLE:
            sent["transaction_id"] = f"t{number}"
        vendor = self._vendor(random)
        times = [occurred_at]
        if kind is EventKind.STABLE:
            # Earlier: a later time may be on a new day.
            times += [occurred_at - timedelta(seconds=random.randint(1, 90_000))]
        if vendor == "adjust":
            send: Send = partial(_adjust_request, sent)
            kept = {name: value for name, value in sent.items() if name in _KEPT}
        else:
            send = partial(message_request, vendor, sent)
            kept = expected_properties(vendor, sent, occurred_at)
        row = Row(
            vendor=vendor,
            workspace_id=APPS[app],
            app_token=app,
            event_type=EVENTS[token],
            occurred_at=frozenset(times),
            os_name=sent["os_name"],
            country=sent["country"].upper(),
            adid=sent["adid"],
            properties=kept,
        )
        return SimulatedEvent(number, kind, _DELIVERIES[kind](send, times, random), row)

    def day(self, number: int) -> datetime:
        """Return the day of the event of this number."""
        return FIRST_DAY + timedelta(days=bisect_right(self.new_days, number))

    def _vendor(self, random: Random) -> str:
        first, *others = self.vendors
        # Without a draw, a seed keeps its callbacks.
        return random.choices([first, *others], [*self.vendors.values()])[0] if others else first

    def _occurred_at(self, number: int, random: Random) -> datetime:
        if number >= self.probes_from:
            return FIRST_DAY - timedelta(days=_PROBES_DAYS, seconds=random.randrange(_DAY_S))
        late_days = 0
        if random.random() < 0.01:  # noqa: PLR2004 - one of a hundred comes late
            late_days = random.randint(1, _LATE_DAYS_MAX)
        return self.day(number) + timedelta(days=-late_days, seconds=random.randrange(_DAY_S))


def _dropped(number: int, kind: EventKind, sent: dict[str, str], random: Random) -> SimulatedEvent:
    drop = _DROPS[kind](sent | {"sending": drops.SENDING.decode()}, random)
    delivery = Delivery(drop.request, 0, random.randrange(60))
    return SimulatedEvent(number, kind, [delivery], None, drop.kept)


def _plain(send: Send, times: Sequence[datetime], random: Random) -> list[Delivery]:
    return [_delivery(send, times[0], random)]


def _redelivered(send: Send, times: Sequence[datetime], random: Random) -> list[Delivery]:
    again = random.randint(1, 2)
    return [
        _delivery(send, times[0], random, after=turn * random.randint(1, 400))
        for turn in range(again + 1)
    ]


def _contested(send: Send, times: Sequence[datetime], random: Random) -> list[Delivery]:
    first = random.randrange(60)
    return [
        replace(_delivery(send, times[0], random), process=first + place)
        for place in range(random.randint(2, 4))
    ]


def _repeated(send: Send, times: Sequence[datetime], random: Random) -> list[Delivery]:
    process = random.randrange(60)
    return [
        replace(_delivery(send, times[0], random), process=process)
        for _ in range(random.randint(2, 5))
    ]


def _hung_up(send: Send, times: Sequence[datetime], random: Random) -> list[Delivery]:
    share = random.choice((random.random(), 1.0))
    return [replace(_delivery(send, times[0], random), hangs_up_after=share)]


def _stable(send: Send, times: Sequence[datetime], random: Random) -> list[Delivery]:
    after = random.choice((0, random.randint(1, 400)))
    return [
        _delivery(send, times[0], random),
        _delivery(send, times[1], random, after=after),
    ]


_DELIVERIES: Mapping[EventKind, Callable[[Send, Sequence[datetime], Random], list[Delivery]]] = {
    EventKind.PLAIN: _plain,
    EventKind.REDELIVERED: _redelivered,
    EventKind.CONTESTED: _contested,
    EventKind.REPEATED: _repeated,
    EventKind.HUNG_UP: _hung_up,
    EventKind.STABLE: _stable,
}
_DROPS: Mapping[EventKind, Callable[[dict[str, str], Random], Drop]] = {
    EventKind.UNMAPPED: drops.unmapped,
    EventKind.UNKNOWN_APP: drops.unknown_app,
    EventKind.UNFILLED: drops.unfilled,
    EventKind.BAD_TIME: drops.bad_time,
    EventKind.MALFORMED: drops.malformed,
    EventKind.POISON: drops.poison,
    EventKind.IGNORED: drops.ignored,
    EventKind.TOO_LARGE: drops.too_large,
}
DROPPED_KINDS = frozenset(_DROPS)


def _delivery(send: Send, occurred_at: datetime, random: Random, after: int = 0) -> Delivery:
    return Delivery(send(occurred_at, random), after, random.randrange(60))


def _adjust_request(sent: dict[str, str], occurred_at: datetime, random: Random) -> bytes:
    names = list(sent)
    if random.random() < 0.5:  # noqa: PLR2004 - half of them in another order
        random.shuffle(names)
    ordered = {name: sent[name] for name in names} | {"created_at": time_text(occurred_at, random)}
    return any_request(ordered, random)
