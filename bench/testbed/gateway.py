"""A gateway as a process of its own, behind proxies to its database and its Redis."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from bench.testbed.process import SERVE, ServerProcess
from bench.testbed.proxy import Proxy


class Gateway(ServerProcess):
    """`python -m app serve`, or other `arguments`.

    `database` and `redis` are its only ways to the servers.
    """

    def __init__(
        self,
        port: int,
        environ: Mapping[str, str],
        log: Path,
        *,
        database: Proxy,
        redis: Proxy,
        arguments: Sequence[str] = SERVE,
    ) -> None:
        self.database = database
        self.redis = redis
        behind = {
            "DATABASE_URL": through(database, environ["DATABASE_URL"]),
            "REDIS_URL": through(redis, environ["REDIS_URL"]),
        }
        super().__init__(port, dict(environ) | behind, log, arguments=arguments)


def through(proxy: Proxy, url: str) -> str:
    """Return the address of a server behind the proxy."""
    parts = urlsplit(url)
    credentials, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}"))
