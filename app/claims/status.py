"""The state of the servers behind REDIS_URL, for `check`."""

from collections.abc import Sequence
from typing import NamedTuple, cast

from app.claims.cluster import ALL_SLOTS
from app.claims.connection import Connect, Endpoint, execute, make_connection
from app.claims.discovery import Kind, discovery_of, read_address


class ServerStatus(NamedTuple):
    """One primary, by its own account."""

    name: str
    mode: str
    role: str
    version: str
    replicas: int
    maxmemory_policy: str


class ClusterStatus(NamedTuple):
    """A cluster, in the view of one of its primaries."""

    state: str
    slots_served: int


class RedisStatus(NamedTuple):
    """All primaries, and the cluster where they are one."""

    kind: Kind
    servers: Sequence[ServerStatus]
    cluster: ClusterStatus | None


async def read_status(
    redis_url: str, timeout_s: float, connect: Connect = make_connection
) -> RedisStatus:
    """Return the state of each primary; raises SettingsError or RedisUnavailable."""
    address = read_address(redis_url)
    discovered = await discovery_of(address, connect, timeout_s).discover(ALL_SLOTS)
    primaries: list[Endpoint] = []
    for endpoint in discovered.values():
        if endpoint not in primaries:
            primaries.append(endpoint)
    servers = []
    for endpoint in primaries:
        info = await _read(connect, endpoint, timeout_s, "INFO")
        servers.append(
            ServerStatus(
                name=f"{endpoint.get('host')}:{endpoint.get('port')}",
                mode=info["redis_mode"],
                role=info.get("role", "sentinel"),
                version=info["redis_version"],
                replicas=int(info.get("connected_slaves", "0")),
                maxmemory_policy=info.get("maxmemory_policy", "unknown"),
            )
        )
    cluster = None
    if address.kind is Kind.CLUSTER:
        info = await _read(connect, primaries[0], timeout_s, "CLUSTER", "INFO")
        cluster = ClusterStatus(info["cluster_state"], int(info["cluster_slots_ok"]))
    return RedisStatus(address.kind, servers, cluster)


async def _read(
    connect: Connect, endpoint: Endpoint, timeout_s: float, *words: str
) -> dict[str, str]:
    """Return the fields of a reply made of lines."""
    reply = cast("bytes", await execute(connect, endpoint, timeout_s, *words))
    pairs = (line.partition(":") for line in reply.decode().splitlines())
    return {name: value for name, colon, value in pairs if colon}
