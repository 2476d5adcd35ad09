"""The environment of a run: a Patroni cluster, HAProxy, a Redis and gateways, on loopback."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from app.dev import embedded, programs
from app.dev.processes import Server, free_port
from bench.testbed.callbacks import WORKSPACES
from bench.testbed.drops import POISON_RULES
from bench.testbed.environment import DEFAULT_TIMEOUTS, SETTINGS, run_folder
from bench.testbed.haproxy import HAProxy, find_haproxy
from bench.testbed.process import ServerProcess
from bench.testbed.threads import in_thread
from bench.topologies.node import find_executables
from bench.topologies.patroni import Cluster, open_cluster, proxied
from bench.topologies.servers import url_of

GATEWAYS = 2


class Route(Enum):
    """The way of the gateways to the primary."""

    HAPROXY = "haproxy"
    HOSTS = "hosts"


class Redis(NamedTuple):
    """A Redis, and the description of its programs."""

    server: Server
    url: str
    description: str


class Environment(NamedTuple):
    """All servers of a run; `proxy` is None where gateways have every host in DATABASE_URL."""

    cluster: Cluster
    proxy: HAProxy | None
    redis: Redis
    gateways: Sequence[ServerProcess]
    description: str

    @property
    def ports(self) -> Sequence[int]:
        """The ports of the gateways."""
        return [gateway.port for gateway in self.gateways]


@asynccontextmanager
async def open_environment(folder: Path | None, route: Route) -> AsyncIterator[Environment]:
    """Start everything, and stop it at the end; raises EmbeddedError and BenchError.

    Data and logs stay in `folder`; without one they are deleted.
    """
    async with AsyncExitStack() as stack:
        folder = run_folder(stack, folder)
        redis = stack.enter_context(_redis(folder / "servers"))
        executables = find_executables(programs.find())
        cluster = await stack.enter_async_context(open_cluster(folder, executables))
        async with cluster.connected() as connection:
            for rule in POISON_RULES:
                await connection.execute(rule)
        proxy = None
        if route is Route.HAPROXY:
            proxy = stack.enter_context(proxied(cluster, find_haproxy()))
        settings = _settings(cluster, proxy, redis.url, folder)
        gateways = await stack.enter_async_context(_gateways(settings, folder))
        description = f"{executables.description}; {redis.description}"
        yield Environment(cluster, proxy, redis, gateways, description)


@contextmanager
def _redis(folder: Path) -> Iterator[Redis]:
    with embedded.start(folder) as servers:
        servers.postgres.stop()  # Redis alone is of use
        yield Redis(servers.redis, servers.redis_url, servers.description)


def _settings(
    cluster: Cluster, proxy: HAProxy | None, redis_url: str, folder: Path
) -> Mapping[str, str]:
    workspaces = folder / "workspaces.toml"
    workspaces.write_text(WORKSPACES)
    return SETTINGS | DEFAULT_TIMEOUTS | {
        "DATABASE_URL": cluster.url if proxy is None else url_of(proxy),
        "REDIS_URL": redis_url,
        "WORKSPACES_FILE": str(workspaces),
    }  # fmt: skip


@asynccontextmanager
async def _gateways(
    settings: Mapping[str, str], folder: Path
) -> AsyncIterator[Sequence[ServerProcess]]:
    gateways = [
        ServerProcess(free_port(), settings, folder / f"gateway-{number}.log")
        for number in range(GATEWAYS)
    ]
    async with AsyncExitStack() as stack:
        for gateway in gateways:
            stack.push_async_callback(in_thread, gateway.stop)
            await gateway.start_ready()
        yield gateways
