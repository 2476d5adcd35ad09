"""Redis Cluster: hash tags that split a batch, and the primary of each hash slot."""

from collections.abc import Sequence
from random import sample
from typing import cast

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from app.claims.connection import Connect, Endpoint, RedisUnavailable, execute

# The keys of a script must share a slot, so a batch becomes up to this number of scripts. Fewer
# would share the load unevenly, and a primary beyond their number would have none. Another number
# is another set of keys: the cluster forgets its claims.
CLUSTER_PARTS = 16
ALL_SLOTS = range(REDIS_CLUSTER_HASH_SLOTS)

# The reply to CLUSTER SLOTS: first slot, last slot, their primary, its replicas.
_Node = tuple[bytes | None, int, *tuple[object, ...]]
_SlotRange = tuple[int, int, *tuple[_Node, ...]]


def hash_tags() -> list[bytes]:
    """Return a tag for each part, with slots spread evenly, so that every primary has its share.

    A tag stands first in its key: the rest of the key may hold braces too.
    """
    width = REDIS_CLUSTER_HASH_SLOTS // CLUSTER_PARTS
    tags = {key_slot(tag) // width: tag for tag in (b"{%02x}" % n for n in range(256))}
    return [tags[part] for part in range(CLUSTER_PARTS)]


def split(event_ids: Sequence[bytes]) -> Sequence[Sequence[int]]:
    """Return the positions of the events of each part."""
    positions: list[list[int]] = [[] for _ in range(CLUSTER_PARTS)]
    for position, event_id in enumerate(event_ids):
        positions[event_id[0] % CLUSTER_PARTS].append(position)
    return positions


class ClusterNodes:
    """Discovers primaries through any node that answers.

    redis-py's own cluster client fills a table of all 16,384 slots each time, which blocks the
    event loop, and then closes every connection.
    """

    def __init__(self, named: Sequence[Endpoint], connect: Connect, timeout_s: float) -> None:
        """Take the nodes that REDIS_URL names; each node has `timeout_s` to answer."""
        self._named = named
        self._connect = connect
        self._timeout_s = timeout_s
        self._nodes: dict[tuple[object, object], Endpoint] = {}  # as of the last discovery

    async def discover(self, slots: Sequence[int]) -> dict[int, Endpoint]:
        """Return the primary of each slot that has one now; raises RedisUnavailable."""
        # The names of REDIS_URL stay candidates: they may lead to other servers by now.
        named = {(endpoint["host"], endpoint["port"]): endpoint for endpoint in self._named}
        nodes = list((self._nodes | named).values())
        unavailable = RedisUnavailable("no node")
        for node in sample(nodes, len(nodes)):
            try:
                reply = await execute(self._connect, node, self._timeout_s, "CLUSTER", "SLOTS")
            except RedisUnavailable as error:
                unavailable = error
            else:
                return self._read(cast("Sequence[_SlotRange]", reply), node, slots)
        raise unavailable

    def _read(
        self, ranges: Sequence[_SlotRange], answered: Endpoint, slots: Sequence[int]
    ) -> dict[int, Endpoint]:
        self._nodes = {}
        primaries: dict[int, Endpoint] = {}
        for first, last, *nodes in ranges:
            endpoints: list[Endpoint] = []
            for host, port, *_ in nodes:
                # A node that does not know its own name is at the address that answered.
                name = host.decode() if host else answered["host"]
                endpoints.append({**answered, "host": name, "port": port})
                self._nodes[name, port] = endpoints[-1]
            primaries |= {slot: endpoints[0] for slot in slots if first <= slot <= last}
        return primaries
