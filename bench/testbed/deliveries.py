"""Generated events of a simulated vendor: their deliveries, and the row expected of each.

An event depends on the seed and its number alone, and can be generated again at any time.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import Enum
from random import Random
from typing import NamedTuple

from bench.testbed import drops
from bench.testbed.callbacks import EVENTS, parameters, time_text
from bench.testbed.drops import Drop, Kept
from bench.testbed.event_ids import event_id_of, user_of
from bench.testbed.identities import Point, point
from bench.testbed.periods import Period, moment_of
from bench.testbed.rows import NUMBER, Row, Version, row_of
from bench.testbed.stable_ids import StableId
from bench.testbed.versions import Made, kept_of, make_version

# Fixed: the same seed sends the same callbacks on any day.
FIRST_DAY = datetime(2024, 3, 1, tzinfo=UTC)
_DAY_S = 86_400
_LATE_DAYS_MAX = 5
_PROBES_DAYS = 10
_STABLE_POISON_SHARE = 1 / 3


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


# The vendors of the events with one app, token and user; only Adjust's callbacks are dropped.
ADJUST = ("adjust",) * 4
MIX = ("adjust",) * 12 + ("appsflyer",) * 5 + ("branch",) * 3


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


class Plan(NamedTuple):
    """A delivery without its request; see `Delivery`."""

    after: int
    process: int
    hangs_up_after: float | None = None


@dataclass(frozen=True)
class SimulatedEvent:
    """One event of the vendor: its deliveries, and its row; None where it must be dropped.

    `kept` is its row in quarantine, of which each delivery has one; None where it has none.
    `refused` is the event in that row, if the database refuses it; `identity` that of a row.
    """

    number: int
    kind: EventKind
    deliveries: Sequence[Delivery]
    row: Row | None
    kept: Kept | None = None
    refused: Row | None = None
    identity: Point | None = None


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
    vendors: Sequence[str] = ADJUST

    def event(self, number: int) -> SimulatedEvent:
        """Return the event of this number, always the same."""
        random = Random(self.seed * 1_000_003 + number)  # noqa: S311 - repeatable
        kind = random.choices(list(self.shares), list(self.shares.values()))[0]
        if number >= self.probes_from:
            kind = EventKind.UNMAPPED if (number - self.probes_from) % 2 else EventKind.PLAIN
        identity = point(self.seed, number, self.vendors)
        occurred_at = self._occurred_at(number, kind, identity, random)
        sent = parameters(number, random, app=identity.app_token, token=identity.token)
        sent[NUMBER] = str(number)
        if kind in _DROPS:
            return _dropped(kind, identity, sent, occurred_at, random)
        for name in ("user_id", "adid", "gps_adid", "idfa"):
            del sent[name]
        stable = identity.stable_id(is_sent=kind is EventKind.STABLE)
        plans = _PLANS[kind](random)
        made: list[Made] = []
        for turn in range(len(plans)):
            time = occurred_at
            if kind is EventKind.STABLE and turn:
                # Earlier: a later time may be on a new day.
                time -= timedelta(seconds=random.randint(1, 90_000))
            version = make_version(identity, stable, sent, turn, occurred_at=time, random=random)
            made.append(version)
        row = row_of(
            made[0].event_id, sent, identity.user.columns,
            vendor=identity.vendor, token=identity.token,
            versions=[one.version for one in made], has_stable_id=bool(stable.names),
        )  # fmt: skip
        deliveries = [Delivery(one.request, *plan) for one, plan in zip(made, plans, strict=True)]
        return SimulatedEvent(number, kind, deliveries, row, identity=identity)

    def day(self, number: int) -> datetime:
        """Return the day of the event of this number."""
        return FIRST_DAY + timedelta(days=bisect_right(self.new_days, number))

    def _occurred_at(
        self, number: int, kind: EventKind, identity: Point, random: Random
    ) -> datetime:
        seconds_max = len(self.vendors)
        periods = () if kind is EventKind.STABLE else self.periods
        if moment := moment_of(periods, number, random, seconds_max):
            return moment + identity.moment
        # The same for the whole block.
        first_s = identity.block * 7_919 % (_DAY_S - seconds_max)
        of_day = timedelta(seconds=first_s) + identity.moment
        if number >= self.probes_from:
            return FIRST_DAY - timedelta(days=_PROBES_DAYS) + of_day
        late_days = 0
        if random.random() < 0.01:  # noqa: PLR2004 - one of a hundred comes late
            late_days = random.randint(1, _LATE_DAYS_MAX)
        return self.day(number) - timedelta(days=late_days) + of_day


def _dropped(
    kind: EventKind, identity: Point, sent: dict[str, str], occurred_at: datetime, random: Random
) -> SimulatedEvent:
    sent |= {"created_at": time_text(occurred_at, random), "sending": drops.SENDING.decode()}
    stable = StableId({}, {})
    if kind is EventKind.POISON and random.random() < _STABLE_POISON_SHARE:
        stable = identity._replace(vendor="adjust").stable_id(is_sent=True)
        sent |= stable.names
    drop = _DROPS[kind](sent, random)
    delivery = Delivery(drop.request, 0, random.randrange(60))
    refused = None
    if kind is EventKind.POISON:
        columns = {"user_id": sent["user_id"], "adid": sent["adid"]}
        token = sent["event_token"]
        event_id = event_id_of(
            user_of(columns, {}), vendor="adjust", app_token=sent["app_token"],
            event_type=EVENTS[token], occurred_at=occurred_at, raw_event_id=token,
            stable_id=stable.value,
        )  # fmt: skip
        refused = row_of(
            event_id, sent, columns, vendor="adjust", token=token,
            versions=[Version(occurred_at, kept_of(sent))], has_stable_id=bool(stable.names),
        )  # fmt: skip
    return SimulatedEvent(int(sent[NUMBER]), kind, [delivery], None, drop.kept, refused)


def _plain(random: Random) -> list[Plan]:
    return [Plan(0, random.randrange(60))]


def _redelivered(random: Random) -> list[Plan]:
    again = random.randint(1, 2)
    return [Plan(turn * random.randint(1, 400), random.randrange(60)) for turn in range(again + 1)]


def _contested(random: Random) -> list[Plan]:
    first = random.randrange(60)
    return [Plan(0, first + place) for place in range(random.randint(2, 4))]


def _repeated(random: Random) -> list[Plan]:
    return [Plan(0, random.randrange(60))] * random.randint(2, 5)


def _hung_up(random: Random) -> list[Plan]:
    return [Plan(0, random.randrange(60), random.choice((random.random(), 1.0)))]


def _stable(random: Random) -> list[Plan]:
    after = random.choice((0, random.randint(1, 400)))
    return [Plan(0, random.randrange(60)), Plan(after, random.randrange(60))]


_PLANS: Mapping[EventKind, Callable[[Random], list[Plan]]] = {
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
