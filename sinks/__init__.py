"""Sinks keep events, `Quarantine` keeps drops: the interfaces. Each sink is a folder here."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from app.dropped import Dropped, RejectedRequest
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


class Account(NamedTuple):
    """The drops whose size is counted together."""

    workspace_id: str
    reason: str
    subject: str


class Quarantine(Protocol):
    """A durable store of dropped callbacks, and of the traces of rejected requests."""

    async def keep(self, drops: Sequence[Dropped]) -> None:
        """Commit drops; after an exception they may or may not be kept."""
        ...

    async def reject(self, requests: Sequence[RejectedRequest]) -> None:
        """Keep the traces of rejected requests; the oldest go where there are too many."""
        ...

    async def usage(self, small_bytes: int) -> Mapping[Account, int]:
        """Return the bytes in quarantine by account.

        The accounts of a workspace below `small_bytes` come as one, without reason and subject.
        """
        ...

    async def close(self) -> None:
        """Close the connections. Nothing may follow."""
        ...
