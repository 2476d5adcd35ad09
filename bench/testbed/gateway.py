"""A gateway as a process of its own, behind proxies to its database and its Redis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from app.dev.processes import Server
from bench.testbed.process import SERVE, ServerProcess
from bench.testbed.proxy import Proxy


class Gateway(ServerProcess):
    """`python -m app serve`, or other `arguments`.

    `databases`, one for each host of DATABASE_URL, and `redis` are its only ways to the servers.
    """

    def __init__(
        self,
        port: int,
        environ: Mapping[str, str],
        log: Path,
        *,
        databases: Sequence[Proxy],
        redis: Proxy,
        arguments: Sequence[str] = SERVE,
    ) -> None:
        self.databases = databases
        self.redis = redis
        behind = {
            "DATABASE_URL": through(databases, environ["DATABASE_URL"]),
            "REDIS_URL": through([redis], environ["REDIS_URL"]),
        }
        super().__init__(port, dict(environ) | behind, log, arguments=arguments)

    @property
    def database(self) -> Proxy:
        """The way to the first host of its database, often the only one."""
        return self.databases[0]

    def way_to(self, server: Server) -> Proxy:
        """Return the way to one of several servers."""
        return next(proxy for proxy in self.databases if proxy.target[1] == server.port)


def ports_of(url: str) -> list[int]:
    """Return the port of each host in an address."""
    _, _, hosts = urlsplit(url).netloc.rpartition("@")
    return [int(host.rpartition(":")[2]) for host in hosts.split(",")]


def through(proxies: Sequence[Proxy], url: str) -> str:
    """Return the address of servers behind proxies, one for each host."""
    parts = urlsplit(url)
    credentials, _, _ = parts.netloc.rpartition("@")
    hosts = ",".join(f"127.0.0.1:{proxy.port}" for proxy in proxies)
    return urlunsplit(parts._replace(netloc=f"{credentials}@{hosts}"))
