"""The state of a gateway, as `/readyz` reports it."""

from datetime import datetime, timedelta

import msgspec

from app.settings import CLOCK_TOLERANCE_S
from app.version import VERSION


class BufferState(msgspec.Struct, frozen=True):
    """The load of the write buffer."""

    events: int
    max_events: int


class ClockState(msgspec.Struct, frozen=True):
    """The gateway's clock compared with the database's: `right`, `wrong` or `not known`."""

    state: str
    ahead_s: float | None


class Readiness(msgspec.Struct, frozen=True):
    """The body of `/readyz`."""

    draining: bool
    sink: str
    claims: str
    buffer: BufferState
    clock: ClockState
    version: str = VERSION


def is_clock_right(ahead_s: float | None) -> bool:
    """Return whether two clocks are known to agree; `ahead_s` is None if not known."""
    return ahead_s is not None and abs(ahead_s) <= CLOCK_TOLERANCE_S


def corrected(moment: datetime, ahead_s: float | None) -> datetime:
    """Return a time of a clock that is known to be wrong as the right clock has it."""
    if ahead_s is None or is_clock_right(ahead_s):
        return moment
    return moment - timedelta(seconds=ahead_s)


def clock_state(ahead_s: float | None) -> ClockState:
    """Return the state of a clock that is `ahead_s` seconds ahead, or None if not known."""
    state = "right" if is_clock_right(ahead_s) else "not known" if ahead_s is None else "wrong"
    return ClockState(state, None if ahead_s is None else round(ahead_s, 3))
