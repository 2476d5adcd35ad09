"""REDIS_URL, and the discovery of the primaries behind it."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol
from urllib.parse import unquote, urlsplit

from redis.asyncio.connection import parse_url

from app.claims.cluster import ClusterNodes
from app.claims.connection import Connect, Endpoint, make_connection
from app.claims.sentinel import Sentinels
from app.settings import SettingsError

REDIS_PORT, SENTINEL_PORT = 6_379, 26_379


class Kind(Enum):
    """The kinds of address, by the part of the scheme that follows the `+`."""

    SERVER = ""
    CLUSTER = "cluster"
    SENTINEL = "sentinel"


FORMS = {
    Kind.SERVER: "redis://user:password@host:port/database",
    Kind.CLUSTER: "redis+cluster://user:password@host:port,host:port",
    Kind.SENTINEL: "redis+sentinel://user:password@host:port,host:port/service",
}


class Address(NamedTuple):
    """REDIS_URL, parsed: the servers that it names, and the service of the Sentinels."""

    kind: Kind
    endpoints: Sequence[Endpoint]
    service: str = ""


class Discovery(Protocol):
    """Finds the primaries of hash slots."""

    async def discover(self, slots: Sequence[int]) -> Mapping[int, Endpoint]:
        """Return the primary of each slot that has one now; raises RedisUnavailable."""
        ...


class OneServer:
    """No discovery: the one server of the address has every slot."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def discover(self, slots: Sequence[int]) -> Mapping[int, Endpoint]:
        """Return the server for each slot."""
        return dict.fromkeys(slots, self._endpoint)


def discovery_of(address: Address, connect: Connect, timeout_s: float) -> Discovery:
    """Return the discovery for an address; each server has `timeout_s` to answer."""
    match address.kind:
        case Kind.SERVER:
            return OneServer(address.endpoints[0])
        case Kind.CLUSTER:
            return ClusterNodes(address.endpoints, connect, timeout_s)
        case Kind.SENTINEL:
            return Sentinels(address.endpoints, address.service, connect, timeout_s)


def read_address(redis_url: str) -> Address:
    """Parse REDIS_URL; raises SettingsError with one line, without the password."""
    suffix = redis_url.partition("://")[0].partition("+")[2]
    kind = next((kind for kind in Kind if kind.value == suffix), Kind.SERVER)
    try:
        address = _read(kind, redis_url)
        for endpoint in address.endpoints:
            make_connection(endpoint)  # raises TypeError for an unknown option; opens nothing
    except (ValueError, TypeError):
        raise SettingsError(f"REDIS_URL: not an address of the form {FORMS[kind]}") from None
    return address


def _read(kind: Kind, redis_url: str) -> Address:
    if kind is Kind.SERVER:
        return Address(kind, [_options(redis_url)])
    parts = urlsplit(redis_url)
    scheme, path = parts.scheme.partition("+")[0], unquote(parts.path).strip("/")
    credentials, at, hosts = parts.netloc.rpartition("@")
    urls = [f"{scheme}://{credentials}{at}{host}?{parts.query}" for host in hosts.split(",")]
    endpoints = [_options(url) for url in urls]
    if not all(endpoint.get("host") for endpoint in endpoints):
        raise ValueError("a host without a name")
    if kind is Kind.SENTINEL:
        if not path:
            raise ValueError("no service")
        return Address(kind, [{"port": SENTINEL_PORT} | one for one in endpoints], path)
    if path not in ("", "0") or any(endpoint.get("db") for endpoint in endpoints):
        raise ValueError("a cluster has no other database than 0")
    return Address(kind, [{"port": REDIS_PORT} | one for one in endpoints])


def _options(redis_url: str) -> dict[str, object]:
    return dict(parse_url(redis_url))
