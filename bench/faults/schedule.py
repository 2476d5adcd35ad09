"""What is sent and what strikes when: the same for the same seed and sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

from bench.faults.faults import FAULTS, NEW_DAY
from bench.faults.stories import SHARES, Author, Plot

# The last of the callbacks, after the last strike, so that it too is seen to be over.
_TAIL = 0.02


@dataclass(frozen=True)
class Strike:
    """A fault of this name, against a gateway of this number, when so many stories are begun."""

    at: int
    fault: str
    gateway: int


@dataclass(frozen=True)
class Plan:
    """What is sent, how fast at most (stories a second), to how many gateways, and what strikes."""

    seed: int
    callbacks: int
    strikes: Sequence[Strike]
    rate: float
    gateways: int = 2
    shares: Mapping[Plot, int] = field(default_factory=lambda: SHARES)

    @property
    def author(self) -> Author:
        """Who writes the callbacks of this plan."""
        new_days = [strike.at for strike in self.strikes if strike.fault in NEW_DAY]
        return Author(self.seed, self.shares, new_days, probes_from=self.callbacks)


def make_plan(
    *,
    seed: int,
    callbacks: int,
    strikes: int,
    rate: float,
    kinds: Sequence[str] = tuple(FAULTS),
    gateways: int = 2,
    shares: Mapping[Plot, int] = SHARES,
) -> Plan:
    """Return a plan in which each kind strikes as often as any other, in an order of the seed."""
    random = Random(seed)  # noqa: S311 - repeatable is wanted
    names = [kinds[number % len(kinds)] for number in range(strikes)]
    random.shuffle(names)
    span = callbacks * (1 - _TAIL) / max(strikes, 1)
    places = [int((number + random.random() * 0.5) * span) for number in range(strikes)]
    return Plan(
        seed,
        callbacks,
        [
            Strike(at, name, random.randrange(gateways))
            for at, name in zip(places, names, strict=True)
        ],
        rate,
        gateways,
        shares,
    )


def short_plan(seed: int) -> Plan:
    """Return a plan of 20,000 callbacks and a fault of every kind, for two minutes."""
    # Slow enough for callbacks to come all through each fault.
    return make_plan(seed=seed, callbacks=20_000, strikes=len(FAULTS), rate=170)
