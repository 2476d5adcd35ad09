"""The schedules of a run: their callbacks and faults, the same for the same seed and sizes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random

from bench.faults.fault import Place
from bench.faults.faults import FAULTS, MANY_DAYS, NEW_DAY, NOW, PLACES, QUICK, unavailable
from bench.testbed.deliveries import (
    ADJUST,
    FIRST_DAY,
    MIX,
    SHARES,
    EventGenerator,
    EventKind,
)
from bench.testbed.periods import Period

# The share of the callbacks after the last fault: nothing disturbs them.
TAIL = 0.02
# Callbacks in proportion to the length of the faults, so that there are some throughout.
_WEIGHTS = {Place.SINGLE: 1, Place.PAIR: 2, Place.DATES: 1}
# Of `Place.DATES`. The gateway accepts events of RETENTION_D less 31 days, and of the next day.
_KEPT_BEFORE_D = 1_000
_NOT_KEPT_D = 31
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
# The share of the callbacks with a date of their own; of a storm of wrong dates the number of days,
# among so many days before the others.
_WRONG = 0.3
_WRONG_DAYS, _WRONG_AMONG, _WRONG_BEFORE_D = 15, 900, 20


@dataclass(frozen=True)
class Injection:
    """A fault of this name against the gateway of this number, when so many events have begun."""

    at: int
    fault: str
    gateway: int


@dataclass(frozen=True)
class Schedule:
    """The callbacks, their maximum rate (events a second), the gateways, and the faults.

    All faults are of one `place`. Some callbacks of wrong clocks occur at about `now`.
    """

    seed: int
    callbacks: int
    injections: Sequence[Injection]
    rate: float
    gateways: int = 2
    shares: Mapping[EventKind, int] = field(default_factory=lambda: SHARES)
    place: Place = Place.SINGLE
    now: datetime = FIRST_DAY

    @property
    def generator(self) -> EventGenerator:
        """The generator of the schedule's events."""
        new_days = [injection.at for injection in self.injections if injection.fault in NEW_DAY]
        return EventGenerator(
            # Each place has callbacks of its own.
            self.seed + 7_919 * list(Place).index(self.place),
            self.shares,
            new_days,
            tuple(self._periods()),
            probes_from=self.callbacks,
            # A callback whose vendor does not retry is dropped in place of a 503 for a wrong clock.
            vendors=ADJUST if self.place is Place.DATES else MIX,
        )

    @property
    def settings(self) -> Mapping[str, str]:
        """The settings of the gateways, beside those of every run."""
        if self.place is not Place.DATES:
            return {}
        return {"RETENTION_D": str(self._kept_d + _NOT_KEPT_D)}

    @property
    def _kept_d(self) -> int:
        return (self.now - FIRST_DAY).days + _KEPT_BEFORE_D

    def _periods(self) -> Iterator[Period]:
        ends = [*(injection.at for injection in self.injections[1:]), self.callbacks]
        for injection, end in zip(self.injections, ends, strict=False):  # there may be none
            if injection.fault in MANY_DAYS:
                random = Random(f"{self.seed} {injection.at}")  # noqa: S311 - repeatable
                days = random.sample(range(_WRONG_AMONG), _WRONG_DAYS)
                before = [FIRST_DAY - _DAY * (_WRONG_BEFORE_D + day) for day in days]
                yield Period(injection.at, end, _WRONG, [(day, _DAY) for day in before])
            elif injection.fault in NOW:
                # 25 hours make the first ones too new, the others too old: for up to 3 hours.
                first = self.now - _DAY * self._kept_d + 3 * _HOUR
                spans = [(self.now - _HOUR, 20 * _HOUR), (first, 20 * _HOUR)]
                yield Period(injection.at, end, _WRONG, spans)


def make_schedules(
    *,
    seed: int,
    callbacks: int,
    injections: int,
    rate: float,
    kinds: Sequence[str] = tuple(FAULTS),
    gateways: int = 2,
    shares: Mapping[EventKind, int] = SHARES,
) -> list[Schedule]:
    """Return a schedule for each place, of the kinds there; a kind may be among them twice."""
    names = [kinds[number % len(kinds)] for number in range(injections)]
    weight = sum(_WEIGHTS[PLACES[name]] for name in names)
    schedules = []
    scheduled = weight_before = 0
    for place in Place:
        if here := [name for name in names if PLACES[name] is place]:
            weight_before += _WEIGHTS[place] * len(here)
            share = callbacks * weight_before // weight - scheduled
            scheduled += share
            schedules.append(
                make_schedule(
                    seed=seed,
                    callbacks=share,
                    injections=len(here),
                    rate=rate,
                    kinds=here,
                    gateways=gateways,
                    shares=shares,
                )
            )
    return schedules


def make_schedule(
    *,
    seed: int,
    callbacks: int,
    injections: int,
    rate: float,
    kinds: Sequence[str],
    gateways: int = 2,
    shares: Mapping[EventKind, int] = SHARES,
) -> Schedule:
    """Return a schedule of kinds of one place, in turn, but in an order of the seed."""
    [place] = {PLACES[kind] for kind in kinds} or {Place.SINGLE}
    random = Random(seed)  # noqa: S311 - repeatable
    names = [kinds[number % len(kinds)] for number in range(injections)]
    random.shuffle(names)
    span = callbacks * (1 - TAIL) / max(injections, 1)
    places = [int((number + random.random() * 0.5) * span) for number in range(injections)]
    return Schedule(
        seed,
        callbacks,
        [
            Injection(at, name, random.randrange(gateways))
            for at, name in zip(places, names, strict=True)
        ],
        rate,
        gateways,
        shares,
        place,
    )


def short_schedule(seed: int) -> Schedule:
    """Return a schedule of 20,000 callbacks and each quick fault of one database once."""
    missing = unavailable()
    kinds = [kind for kind in QUICK if kind not in missing]
    # Slow enough for callbacks throughout each fault.
    return make_schedule(seed=seed, callbacks=20_000, injections=len(kinds), rate=170, kinds=kinds)
