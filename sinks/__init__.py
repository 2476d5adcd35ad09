"""Where events are kept. A sink is one module in this folder."""

from collections.abc import Sequence
from typing import Protocol

from app.event import Event, Outcome


class Sink(Protocol):
    """What the path asks of a place that keeps events."""

    @property
    def clock_ahead_s(self) -> float | None:
        """The gateway's clock less the sink's, in seconds; None while that is not known."""
        ...

    async def write(self, events: Sequence[Event], *, contested: bool) -> Sequence[Outcome]:
        """Commit events that all differ in `event_id`, and return what became of each, in order.

        `contested` says that somebody else is writing these now. WRITTEN, DUPLICATE and REFUSED
        are final; CONTESTED (only where `contested` is False) asks for the event again, alone
        and contested. If it raises, any of them may or may not be stored, and every one may be
        tried again. An empty sequence asks whether the sink answers at all.
        """
        ...

    async def close(self) -> None:
        """Close the connections. Nothing is written any more."""
        ...
