"""The parts of the claims: keys that share a hash slot, since a script needs them in one.

One Redis has one part. A cluster has several, and a batch is split among them.
"""

from collections.abc import Sequence
from typing import NamedTuple

from redis.crc import key_slot

from app.claims.cluster import split


class Part:
    """The claims in one hash slot: all of them, or in a cluster those with one hash tag."""

    def __init__(self, tag: bytes) -> None:
        self.tag = tag
        self.slot = key_slot(tag)
        self.unsettled: list[bytes] = []  # keys of committed events


class Share(NamedTuple):
    """The events of a batch that belong to a part: their positions in it, and their keys."""

    part: Part
    positions: Sequence[int] = ()
    keys: Sequence[bytes] = ()


def shares_of(
    event_ids: Sequence[bytes], parts: Sequence[Part], generation: str | None
) -> Sequence[Share]:
    """Return the share of each part; none without a generation, which is in every key."""
    if generation is None:
        return ()
    name = generation.encode()
    if len(parts) == 1:
        return (Share(parts[0], range(len(event_ids)), list(map(name.__add__, event_ids))),)
    return [
        Share(part, positions, [part.tag + name + event_ids[p] for p in positions])
        for part, positions in zip(parts, split(event_ids), strict=True)
    ]
