"""A sabotage: a patch of the real gateway in its own process, and the run that shows it."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum

from bench.testbed.deliveries import SHARES, EventKind


class Found(Enum):
    """The verdict on a sabotage; the values are printed in the table."""

    LOST = "lost"
    DOUBLED = "doubled"
    LIED = "lied"
    LEAKED = "leaked"
    FAILED = "failed"  # a 5xx without a cause
    STUCK = "stuck"
    CLAIMS = "claims"  # a rule of the claims in Redis, whose breach costs speed alone


class Scenario(Enum):
    """The run against a sabotage."""

    FAULTS = "faults"
    REPLACED_DATA = "data replaced under the claims"
    OTHERS_CLAIMS = "claims taken over by another process"
    FROZEN_REDIS = "callbacks while Redis is frozen"
    LACKING_STANDBY = "a standby without the last rows is promoted"


def nothing() -> None:
    """Change nothing."""


@dataclass(frozen=True)
class Sabotage:
    """One broken sentence of docs/contract.md.

    `apply` patches the modules of the process that serves. The run injects each of `faults` in
    turn, on a database that `statements` have changed; `shares` of the callbacks differ from the
    usual ones. `found` is the verdict that is required; `unavoidable` are those that the changed
    database earns the real gateway too.
    """

    name: str
    sentence: str
    found: Found
    apply: Callable[[], None] = nothing
    faults: Sequence[str] = ()
    statements: Sequence[str] = ()
    shares: Mapping[EventKind, int] = field(default_factory=dict)
    callbacks: int = 1_200
    scenario: Scenario = Scenario.FAULTS
    unavoidable: Collection[Found] = ()

    @property
    def is_patch(self) -> bool:
        """Whether the gateway itself is changed, and not the database alone."""
        return self.apply is not nothing

    @property
    def accepted(self) -> frozenset[Found]:
        """The verdicts that find it: an answer without a row is *lied* where a retry wrote it."""
        lost_or_lied = frozenset((Found.LOST, Found.LIED))
        return lost_or_lied if self.found in lost_or_lied else frozenset((self.found,))

    @property
    def all_shares(self) -> Mapping[EventKind, int]:
        """The shares of the kinds of events, all of them."""
        return SHARES | dict(self.shares)


# Each patched attribute: its owner, name and original value.
_patched: list[tuple[object, str, object]] = []


def patch(owner: object, name: str, replacement: object) -> None:
    """Replace an attribute of a module or class, which must exist."""
    if name not in vars(owner):
        raise AttributeError(f"{owner} has no {name}: the sabotage does nothing")
    _patched.append((owner, name, vars(owner)[name]))
    setattr(owner, name, replacement)


@contextmanager
def applied(sabotage: Sabotage) -> Iterator[None]:
    """Apply a sabotage to this process, and undo its patches at the end."""
    before = len(_patched)
    try:
        sabotage.apply()
        yield
    finally:
        while len(_patched) > before:
            setattr(*_patched.pop())
