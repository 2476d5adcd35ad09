"""The stories of a vendor: what it tells, how often, and the row that must come of it.

A story is one event and all its deliveries. It depends on the seed and its number alone, so that
whoever needs it again makes it again.
"""

import sys
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from random import Random

from bench.testbed.callbacks import APPS, EVENTS, parameters, request, written

# The database's own rules, which no gateway knows of: a check, a value that does not convert, and
# an index that takes no long text. Each refuses a row in another way.
_ENVIRONMENT = "(properties ->> 'environment')"
POISON_RULES = (
    f"ALTER TABLE events ADD CHECK ({_ENVIRONMENT} IS DISTINCT FROM 'forbidden')",
    f"ALTER TABLE events ADD CHECK (nullif({_ENVIRONMENT}, 'production')::numeric IS NULL)",
    "CREATE INDEX ON events ((properties ->> 'tracker_name'))",
)
# Fixed, so that the same seed sends the same callbacks on any day.
FIRST_DAY = datetime(2024, 3, 1, tzinfo=UTC)
_DAY_S = 86_400
_LATE_DAYS_MAX = 5
_PROBES_DAYS = 10


# What the gateway keeps in `properties`.
_KEPT = {
    "revenue", "revenue_float", "currency", "event_token", "activity_kind", "environment",
    "tracker_name", "transaction_id",
}  # fmt: skip


class Plot(Enum):
    """What is special about a story."""

    PLAIN = "plain"
    REDELIVERED = "redelivered"  # later, written in another way
    TWINS = "twins"  # at the same moment, to different processes
    REPEATED = "repeated"  # at the same moment, to one process
    HUNG_UP = "hung_up"  # the caller goes away half-way, and tries again
    STABLE = "stable"  # with a stable ID, and redelivered with another time
    UNMAPPED = "unmapped"  # an event token that no workspace knows
    BAD_TIME = "bad_time"
    POISON = "poison"  # the database refuses it


# Of a thousand callbacks.
SHARES: dict[Plot, int] = {
    Plot.PLAIN: 620,
    Plot.REDELIVERED: 80,
    Plot.TWINS: 60,
    Plot.REPEATED: 40,
    Plot.HUNG_UP: 60,
    Plot.STABLE: 80,
    Plot.UNMAPPED: 30,
    Plot.BAD_TIME: 20,
    Plot.POISON: 10,
}
DROPPED_PLOTS = frozenset({Plot.UNMAPPED, Plot.BAD_TIME, Plot.POISON})


@dataclass(frozen=True)
class Delivery:
    """One sending of a callback, with the retries that it may need.

    `after` is how many other callbacks are begun before it, `process` which gateway gets it (of
    as many as there are), `hangs_up_after` the share of the request that is sent before the
    caller goes away; None if it stays.
    """

    request: bytes
    after: int
    process: int
    hangs_up_after: float | None = None


@dataclass(frozen=True)
class Row:
    """What must stand in the table; any of the times will do."""

    workspace_id: str
    app_token: str
    event_type: str
    occurred_at: frozenset[datetime]
    os_name: str
    country: str
    adid: str
    properties: Mapping[str, str]


@dataclass(frozen=True)
class Story:
    """One event of a vendor: its deliveries, and its row; None where it is to be dropped."""

    number: int
    plot: Plot
    deliveries: Sequence[Delivery]
    row: Row | None


@dataclass(frozen=True)
class Author:
    """Writes the stories of one seed.

    From each number in `new_days` on, the events occur on a day that none occurred on before.
    From `probes_from` on, the stories are plain, and occurred on a day of their own.
    """

    seed: int
    shares: Mapping[Plot, int] = field(default_factory=lambda: SHARES)
    new_days: Sequence[int] = ()
    probes_from: int = sys.maxsize

    def write(self, number: int) -> Story:
        """Return the story of this number, always the same."""
        random = Random(self.seed * 1_000_003 + number)  # noqa: S311 - repeatable is wanted
        plot = random.choices(list(self.shares), list(self.shares.values()))[0]
        if number >= self.probes_from:
            plot = Plot.PLAIN
        token = random.choice(list(EVENTS))
        app = random.choice(list(APPS))
        occurred_at = self._occurred_at(number, random)
        sent = parameters(number, app, token, random)
        if plot is Plot.STABLE:
            sent["transaction_id"] = f"t{number}"
        kept = {name: value for name, value in sent.items() if name in _KEPT}
        times = [occurred_at]
        if plot is Plot.STABLE:
            # Earlier, since later may be a day that is yet to come.
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
        if plot in DROPPED_PLOTS:
            _spoil(sent, plot, random)
        deliveries = _PLOTS[plot](sent, times, random)
        return Story(number, plot, deliveries, None if plot in DROPPED_PLOTS else row)

    def day(self, number: int) -> datetime:
        """Return the day on which the events of this number occur."""
        return FIRST_DAY + timedelta(days=bisect_right(self.new_days, number))

    def _occurred_at(self, number: int, random: Random) -> datetime:
        if number >= self.probes_from:
            return FIRST_DAY - timedelta(days=_PROBES_DAYS, seconds=random.randrange(_DAY_S))
        late_days = 0
        if random.random() < 0.01:  # noqa: PLR2004 - one of a hundred comes late
            late_days = random.randint(1, _LATE_DAYS_MAX)
        return self.day(number) + timedelta(days=-late_days, seconds=random.randrange(_DAY_S))


def _spoil(sent: dict[str, str], plot: Plot, random: Random) -> None:
    """Make a callback one that has to be dropped."""
    if plot is Plot.UNMAPPED:
        sent["event_token"] = "n0b0dy"  # noqa: S105 - a name of Adjust's
    elif plot is Plot.POISON:
        kind = random.randrange(3)
        if kind == 0:
            sent["environment"] = "forbidden"
        elif kind == 1:
            sent["environment"] = "number"
        else:
            # Random text does not compress: no entry of an index is so long.
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


def _twins(sent: dict[str, str], times: Sequence[datetime], random: Random) -> list[Delivery]:
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
    return [Delivery(request(sent | {"created_at": _spoilt_time(random)}, random), 0, 0)]


_PLOTS: Mapping[Plot, Callable[[dict[str, str], Sequence[datetime], Random], list[Delivery]]] = {
    Plot.PLAIN: _plain,
    Plot.REDELIVERED: _redelivered,
    Plot.TWINS: _twins,
    Plot.REPEATED: _repeated,
    Plot.HUNG_UP: _hung_up,
    Plot.STABLE: _stable,
    Plot.UNMAPPED: _plain,
    Plot.BAD_TIME: _bad_time,
    Plot.POISON: _plain,
}


def _delivery(
    sent: dict[str, str], occurred_at: datetime, random: Random, after: int = 0
) -> Delivery:
    names = list(sent)
    if random.random() < 0.5:  # noqa: PLR2004 - half of them in another order
        random.shuffle(names)
    ordered = {name: sent[name] for name in names} | {"created_at": written(occurred_at, random)}
    return Delivery(request(ordered, random), after, random.randrange(60))
