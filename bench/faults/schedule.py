"""The schedule of a run: its callbacks and faults, the same for the same seed and sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from bench.faults.faults import FAULTS, NEW_DAY
from bench.testbed.deliveries import MIX, SHARES, EventGenerator, EventKind

# The share of the callbacks after the last fault, which show that it is over.
_TAIL = 0.02


@dataclass(frozen=True)
class Injection:
    """A fault of this name against the gateway of this number, when so many events have begun."""

    at: int
    fault: str
    gateway: int


@dataclass(frozen=True)
class Schedule:
    """The callbacks, their maximum rate (events a second), the gateways, and the faults."""

    seed: int
    callbacks: int
    injections: Sequence[Injection]
    rate: float
    gateways: int = 2
    shares: Mapping[EventKind, int] = field(default_factory=lambda: SHARES)

    @property
    def generator(self) -> EventGenerator:
        """The generator of the schedule's events."""
        new_days = [injection.at for injection in self.injections if injection.fault in NEW_DAY]
        return EventGenerator(
            self.seed, self.shares, new_days, probes_from=self.callbacks, vendors=MIX
        )


def make_schedule(
    *,
    seed: int,
    callbacks: int,
    injections: int,
    rate: float,
    kinds: Sequence[str] = tuple(FAULTS),
    gateways: int = 2,
    shares: Mapping[EventKind, int] = SHARES,
) -> Schedule:
    """Return a schedule with each fault equally often, in an order of the seed."""
    random = Random(seed)  # noqa: S311 - repeatable
    names = [kinds[number % len(kinds)] for number in range(injections)]
    random.shuffle(names)
    span = callbacks * (1 - _TAIL) / max(injections, 1)
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
    )


def short_schedule(seed: int) -> Schedule:
    """Return a schedule of 20,000 callbacks and each fault once, for two minutes."""
    # Slow enough for callbacks throughout each fault.
    return make_schedule(seed=seed, callbacks=20_000, injections=len(FAULTS), rate=170)
