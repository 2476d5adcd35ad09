"""REDIS_URL: one server, a cluster, or what Sentinels watch over; and who is a primary now."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from enum import Enum
from random import sample
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from redis.asyncio import Redis
from redis.asyncio.connection import ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.utils import str_if_bytes

from app.settings import SettingsError

# What a connection is made from, in redis-py's words: host, port, password and the like.
Place = Mapping[str, Any]

REDIS_PORT, SENTINEL_PORT = 6_379, 26_379
ALL_SLOTS = range(REDIS_CLUSTER_HASH_SLOTS)


class Kind(Enum):
    """What the address leads to, by what follows the `+` in its scheme."""

    SERVER = ""
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


FORMS = {
    Kind.SERVER: "redis://user:password@host:port/database",
    Kind.CLUSTER: "redis+cluster://user:password@host:port,host:port",
    Kind.SENTINEL: "redis+sentinel://user:password@host:port,host:port/service",
}


class Address(NamedTuple):
    """REDIS_URL, read: the servers that it names, and the service that Sentinels know."""

    kind: Kind
    places: Sequence[Place]
    service: str = ""


def read_address(redis_url: str) -> Address:
    """Return what the address says; raises SettingsError with one line, without the password."""
    suffix = redis_url.partition("://")[0].partition("+")[2]
    kind = next((kind for kind in Kind if kind.value == suffix), Kind.SERVER)
    try:
        address = _read(kind, redis_url)
        for place in address.places:
            # Only a connection knows which options there are; it is made here, but not opened.
            connections(place, None).make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        raise SettingsError(f"REDIS_URL: not an address of the form {FORMS[kind]}") from None
    return address


def _read(kind: Kind, redis_url: str) -> Address:
    if kind is Kind.SERVER:
        return Address(kind, [parse_url(redis_url)])
    parts = urlsplit(redis_url)
    scheme, path = parts.scheme.partition("+")[0], unquote(parts.path).strip("/")
    credentials, at, hosts = parts.netloc.rpartition("@")
    urls = [f"{scheme}://{credentials}{at}{host}?{parts.query}" for host in hosts.split(",")]
    places: list[dict[str, Any]] = [dict(parse_url(url)) for url in urls]
    if not all(place.get("host") for place in places):
        raise ValueError("a host without a name")
    if kind is Kind.SENTINEL:
        if not path:
            raise ValueError("no service")
        return Address(kind, [{"port": SENTINEL_PORT} | place for place in places], path)
    if path not in ("", "0") or any(place.get("db") for place in places):
        raise ValueError("a cluster has no other database than 0")
    return Address(kind, [{"port": REDIS_PORT} | place for place in places])


def connections(place: Place, timeout_s: float | None) -> ConnectionPool:
    """Return the connections to a server, none of them open: each tries everything once.

    Without a `timeout_s`, the caller limits the time of each command, and of its connection.
    """
    defaults = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "retry": Retry(NoBackoff(), 0),
    }
    return ConnectionPool(**defaults | dict(place))


def open_redis(place: Place, timeout_s: float) -> Redis:
    """Return a client for some commands, each of which may take so long."""
    return Redis.from_pool(connections(place, timeout_s))


class Finder:
    """Finds the primaries, and knows whom to ask for them.

    redis-py can do that for clusters too. It fills a table of all 16,384 slots each time, which
    stops the event loop for 3 ms, and then closes every connection that there is.
    """

    def __init__(self, address: Address, timeout_s: float) -> None:
        """Take an address; each server that is asked may take `timeout_s`."""
        self._address = address
        self._timeout_s = timeout_s
        self._nodes: dict[tuple[str, int], Place] = {}  # of the cluster, as it was last told

    async def find(self, slots: Sequence[int] = ALL_SLOTS) -> Mapping[int, Place]:
        """Return the primary of each slot, where it has one now.

        Raises RedisError, OSError or TimeoutError where nobody knows.
        """
        match self._address.kind:
            case Kind.SERVER:
                return dict.fromkeys(slots, self._address.places[0])
            case Kind.SENTINEL:
                return dict.fromkeys(slots, await self._ask_sentinels())
            case Kind.CLUSTER:
                primaries = await self._ask_nodes()
                return {
                    slot: place for slot in slots for range_, place in primaries if slot in range_
                }

    async def _ask_sentinels(self) -> Place:
        # A Sentinel has users of its own. With the password alone one lets us in that has the
        # same, or none.
        options = ("username", "db")
        places = [
            {name: value for name, value in place.items() if name not in options}
            for place in self._address.places
        ]
        sentinel = Sentinel([])  # type: ignore[no-untyped-call]
        # In any order: one that is out of reach, or cut off from the others, is not always first.
        sentinel.sentinels = [
            open_redis(place, self._timeout_s) for place in sample(places, len(places))
        ]
        async with aclosing(sentinel):
            host, port = await sentinel.discover_master(self._address.service)
        return dict(self._address.places[0]) | {"host": host, "port": port}

    async def _ask_nodes(self) -> Sequence[tuple[range, Place]]:
        # Also those of REDIS_URL: they are names, behind which others may stand by now.
        named = {(place["host"], place["port"]): place for place in self._address.places}
        nodes = list((self._nodes | named).values())
        error: Exception = RedisConnectionError("no node")
        for node in sample(nodes, len(nodes)):
            try:
                async with (
                    asyncio.timeout(self._timeout_s),
                    open_redis(node, self._timeout_s) as redis,
                ):
                    ranges = await redis.execute_command("CLUSTER", "SLOTS")  # type: ignore[no-untyped-call]
                return self._read(ranges, node)
            except (RedisError, OSError, TimeoutError) as failed:
                error = failed
        raise error

    def _read(self, ranges: Sequence[Any], asked: Place) -> Sequence[tuple[range, Place]]:
        """Read what CLUSTER SLOTS says: first slot, last slot, their primary, its replicas."""
        self._nodes = {}
        primaries = []
        for first, last, *nodes in ranges:
            places = []
            for host, port, *_ in nodes:
                # One that does not know its own name is where it was asked.
                name = str_if_bytes(host) or asked["host"]
                places.append({**asked, "host": name, "port": port})
                self._nodes[name, port] = places[-1]
            primaries.append((range(first, last + 1), places[0]))
        return primaries
