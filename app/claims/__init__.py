"""The door to the claim store: the state of each event before it is written.

Claims make duplicates cheap and keep two writers of one event apart. They decide nothing: with
every event held, the unique index of the database gives the same outcomes, more slowly.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Protocol


class Claim(Enum):
    """The state of one event before it is written."""

    HELD = "held"  # ours to write
    SEEN = "seen"  # committed before: a duplicate
    CONTESTED = "contested"  # another writer has it under way


class Claims(Protocol):
    """A claim store. The token of the owner is the store's own affair."""

    @property
    def is_bypassed(self) -> bool:
        """Whether events are held without the store, because it does not answer in time."""
        ...

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        """Return one claim for each event, in order. A failure of the store raises nothing."""
        ...

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        """Remember that these events are committed."""
        ...

    async def release(self, event_ids: Sequence[bytes]) -> None:
        """Give back the claims on these events, as far as they are still ours."""
        ...

    async def close(self) -> None:
        """Settle the rest, and close the connections."""
        ...
