"""A Patroni cluster on loopback, with the documented configuration: nodes, and their etcd."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import asyncpg

from app.dev.processes import run
from bench.testbed.haproxy import PATRONI, HAProxy, haproxy
from bench.testbed.ports import free_port
from bench.testbed.process import BenchError, Program
from bench.testbed.threads import in_thread
from bench.topologies.node import DOCUMENTED, Executables, Node
from bench.topologies.servers import (
    HYPERTABLE,
    OWNER,
    PASSWORD,
    superuser_connection,
    until,
    url_of,
)
from sinks.timescale.schema import migrate

NAMES = ("one", "two", "three")
SCOPE, SUPERUSER = "flokit", "postgres"
COMMAND_TIMEOUT_S = 60.0
# The limit of a start on a busy machine: an initdb, and two base backups of it.
PATIENCE_S = 180.0


class Cluster:
    """The nodes of one database, and their etcd."""

    def __init__(self, folder: Path, programs: Executables, nodes: int) -> None:
        self.folder, self._programs = folder, programs
        self._etcd_port, self._peer_port = free_port(), free_port()
        self.etcd = Program(self._etcd_command(), folder / "etcd.log")
        self.nodes = [
            Node(name, folder / name, programs, f"127.0.0.1:{self._etcd_port}")
            for name in NAMES[:nodes]
        ]

    @property
    def url(self) -> str:
        """The address of the gateways' database, on every node."""
        return url_of(*self.nodes)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a superuser's connection to the gateways' database on the present primary."""
        leader = await self.until_leader()
        async with superuser_connection(leader, user=SUPERUSER) as connection:
            yield connection

    async def until_leader(self) -> Node:
        """Return the node that is the primary for Patroni, once there is one; raises BenchError."""
        return await self._until(self._leader, "no primary")

    async def until_whole(self) -> Node:
        """Return the primary, once every other node streams from it, and one synchronously."""
        return await self._until(self._whole_leader, "the standbys do not come back")

    async def _until(self, condition: Callable[[], Awaitable[Node | None]], failure: str) -> Node:
        try:
            return await until(condition, PATIENCE_S)
        except TimeoutError:
            raise BenchError(f"{failure}, see {self.folder}") from None

    async def _leader(self) -> Node | None:
        for node in self.nodes:
            if await asyncio.to_thread(node.answers, "/primary"):
                return node
        if any(node.has_ended for node in self.nodes):
            raise BenchError(f"a server has ended by itself, see {self.folder}")
        return None

    async def _whole_leader(self) -> Node | None:
        leader = await self._leader()
        if leader is None:
            return None
        async with superuser_connection(leader, SUPERUSER, user=SUPERUSER) as connection:
            streaming = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            )
        # Patroni promotes a standby only when it has entered it in etcd as a synchronous one.
        entered = [
            await asyncio.to_thread(node.answers, "/quorum")
            for node in self.nodes
            if node is not leader
        ]
        return leader if streaming == len(entered) and all(entered) else None

    def switch_over(self) -> None:
        """Change the roles on purpose, as the documentation does."""
        self.ctl("switchover", "--force")

    def fence(self) -> None:
        """Release the lock of a dead primary, which Patroni would do when its `ttl` has passed."""
        etcdctl = str(self._programs.root / "usr/bin/etcdctl")
        run(
            [
                etcdctl,
                f"--endpoints=127.0.0.1:{self._etcd_port}",
                "del",
                f"/service/{SCOPE}/leader",
            ],
            timeout_s=COMMAND_TIMEOUT_S,
        )

    def ctl(self, *words: str) -> str:
        """Run `patronictl`, and return its output."""
        command = [*self._programs.patroni("patronictl"), "-c", str(DOCUMENTED), *words]
        return run(command, timeout_s=COMMAND_TIMEOUT_S, environment=self.nodes[0].environ)

    async def create_database(self) -> None:
        """Create the database of the gateways with its owner, migrated."""
        leader = await self.until_leader()
        async with superuser_connection(leader, SUPERUSER, user=SUPERUSER) as connection:
            await connection.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'")
            await connection.execute(f"GRANT pg_monitor TO {OWNER}")
            await connection.execute(f"CREATE DATABASE {HYPERTABLE} OWNER {OWNER}")
        async with self.connected() as connection:
            if self._programs.postgres.has_timescaledb:
                await connection.execute("CREATE EXTENSION timescaledb")
            await connection.execute(f"SET ROLE {OWNER}")
            await migrate(connection)

    def _etcd_command(self) -> Sequence[str]:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self._etcd_port, self._peer_port))
        return [
            str(self._programs.root / "usr/bin/etcd"),
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",
        ]


@asynccontextmanager
async def open_cluster(
    folder: Path, programs: Executables, *, nodes: int = len(NAMES), overrides: str = "{}"
) -> AsyncIterator[Cluster]:
    """Start etcd and the nodes, with a migrated database, and stop them all at the end.

    Data and logs are in `folder`. Raises BenchError and EmbeddedError.
    """
    cluster = Cluster(folder, programs, nodes)
    async with AsyncExitStack() as stack:
        # In the thread of the loop: the process ends with the thread that starts it.
        stack.enter_context(cluster.etcd)
        for node in cluster.nodes:
            stack.push_async_callback(in_thread, node.kill)
            node.configure(overrides)
            node.start()
        await cluster.create_database()
        await cluster.until_whole()
        yield cluster


@contextmanager
def proxied(cluster: Cluster, program: Path) -> Iterator[HAProxy]:
    """Run HAProxy by role in front of the nodes, with the documented configuration."""
    ports = {node.name: node.port for node in cluster.nodes}
    checks = {node.name: node.rest_port for node in cluster.nodes}
    with haproxy(cluster.folder, ports, program, PATRONI, checks) as proxy:
        yield proxy
