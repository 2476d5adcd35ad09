"""A Patroni cluster on loopback, with the documented configuration: nodes, and their etcd."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import asyncpg

from app.dev.processes import free_port, run
from bench.testbed.haproxy import PATRONI, HAProxy, haproxy
from bench.testbed.process import PATIENCE_S, POLL_S, BenchError, Program
from bench.topologies.node import DOCUMENTED, PASSWORD, REST_TIMEOUT_S, Executables, Node
from sinks.timescale.schema import migrate

NAMES = ("one", "two", "three")
SCOPE, DATABASE, OWNER, SUPERUSER = "flokit", "flokit", "flokit", "postgres"
COMMAND_TIMEOUT_S = 60.0
# The errors of a server that is away.
AWAY = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)


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

    def url_of(self, *nodes: Node, user: str = OWNER, database: str = DATABASE) -> str:
        """Return the address of a database on any of these nodes; without any, on all of them."""
        ports = [node.port for node in nodes or self.nodes]
        return self.url_at(*ports, user=user, database=database)

    def url_at(self, *ports: int, user: str = OWNER, database: str = DATABASE) -> str:
        """Return the address of a database on these ports."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        return f"postgresql://{user}:{PASSWORD}@{hosts}/{database}"

    @asynccontextmanager
    async def connected(
        self, node: Node, database: str = DATABASE
    ) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection to one node, as a superuser; no commit of it waits for a standby."""
        connection = await asyncpg.connect(
            self.url_of(node, user=SUPERUSER, database=database),
            timeout=REST_TIMEOUT_S,
            server_settings={"synchronous_commit": "local"},
        )
        try:
            yield connection
        finally:
            connection.terminate()

    def leader(self) -> Node | None:
        """Return the node that is the primary for Patroni; None while there is none."""
        return next((node for node in self.nodes if node.answers("/primary")), None)

    async def until_leader(self) -> Node:
        """Return the primary, once there is one; raises BenchError."""
        deadline = time.monotonic() + PATIENCE_S
        while (leader := await asyncio.to_thread(self.leader)) is None:
            has_ended = any(node.has_ended for node in self.nodes)
            if has_ended or time.monotonic() > deadline:
                raise BenchError(f"no primary, see {self.folder}")
            await asyncio.sleep(POLL_S)
        return leader

    async def until_whole(self) -> Node:
        """Return the primary, once every other node streams from it, and one synchronously."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            leader = await self.until_leader()
            with suppress(*AWAY):
                if await self._is_whole(leader):
                    return leader
            if time.monotonic() > deadline:
                raise BenchError(f"the standbys do not come back, see {self.folder}")
            await asyncio.sleep(POLL_S)

    async def _is_whole(self, leader: Node) -> bool:
        async with self.connected(leader, SUPERUSER) as connection:
            streaming = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
            )
        # Patroni promotes a standby only when it has entered it in etcd as a synchronous one.
        entered = [
            await asyncio.to_thread(node.answers, "/quorum")
            for node in self.nodes
            if node is not leader
        ]
        return streaming == len(entered) and all(entered)

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
        async with self.connected(leader, SUPERUSER) as connection:
            await connection.execute(f"CREATE ROLE {OWNER} LOGIN PASSWORD '{PASSWORD}'")
            await connection.execute(f"GRANT pg_monitor TO {OWNER}")
            await connection.execute(f"CREATE DATABASE {DATABASE} OWNER {OWNER}")
        async with self.connected(leader) as connection:
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
            stack.push_async_callback(asyncio.to_thread, node.kill)
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
