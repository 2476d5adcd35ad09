"""Sinks keep events. Each is a folder here; `Sink` is its interface to the gateway."""

from collections.abc import Sequence
from typing import Protocol

from app.event import Event, Outcome


class Sink(Protocol):
    """A durable store of events.

    WRITTEN, DUPLICATE and REFUSED are final. After an exception the event may or may not be
    stored, and a retry is safe.
    """

    @property
    def generation(self) -> str | None:
        """The name of the data that `write` goes to; None while it is unknown.

        A copy, a restored backup or another database has another name. While it is None no claim
        is taken: slower, never wrong.
        """
        ...

    @property
    def clock_ahead_s(self) -> float | None:
        """The gateway's clock minus the sink's, in seconds; None while it is unknown."""
        ...

    async def write(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """Commit events with distinct IDs, and return the outcome of each, in order.

        A CONTESTED event is undecided: pass it to `write_contested`.
        """
        ...

    async def write_contested(self, event: Event) -> Outcome:
        """Commit one event that another writer may have under way; never returns CONTESTED."""
        ...

    async def ping(self) -> None:
        """Return when the sink has answered; raises where it does not."""
        ...

    async def close(self) -> None:
        """Close the connections. No write may follow."""
        ...
