"""Redis topologies on loopback: a cluster of six, and a pair monitored by three Sentinels."""

import asyncio
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from app.dev.processes import Server
from bench.testbed.ports import BUS, free_port
from bench.testbed.process import PATIENCE_S, bound

PASSWORD = "the-servers-own"  # noqa: S105 - of servers that live for a test
# The rights that docs/deploying.md lists for a cluster.
USER, USER_PASSWORD = "gateway", "the-gateways-own"
RIGHTS = "+eval +get +set +del +cluster|slots"
PRIMARIES = 3
SLOTS = 16_384
POLL_S = 0.05
SERVICE = "claims"

COMMON = f"""\
bind 127.0.0.1
save ""
appendonly no
repl-diskless-sync-delay 0
requirepass {PASSWORD}
masterauth {PASSWORD}
"""
# A pause of a busy machine is no failure: only a test that needs a failover lowers the limit.
CALM_MS, HASTY_MS = 10_000, 1_500
CLUSTER_CONF = f"""\
{COMMON}
cluster-enabled yes
cluster-node-timeout {CALM_MS}
cluster-require-full-coverage no
cluster-replica-validity-factor 0
user {USER} on >{USER_PASSWORD} ~* {RIGHTS}
"""
SENTINEL_CONF = """\
bind 127.0.0.1
sentinel monitor {service} 127.0.0.1 {port} 2
sentinel auth-pass {service} {password}
sentinel down-after-milliseconds {service} {calm_ms}
sentinel failover-timeout {service} 2000
"""


def url_of(server: Server) -> str:
    """The address of one server, with all rights."""
    return f"redis://:{PASSWORD}@127.0.0.1:{server.port}"


@asynccontextmanager
async def client_of(server: Server, password: str = PASSWORD) -> AsyncIterator[Any]:
    """Lend a client of a server, with all rights, that repeats no command."""
    once = Retry(NoBackoff(), 0)
    async with Redis(port=server.port, password=password, socket_timeout=5, retry=once) as redis:
        yield redis


async def until(condition: Callable[[], Any]) -> None:
    """Return when an awaited condition holds; unavailable servers count as if it did not."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with suppress(RedisError, OSError):
                if await condition():
                    return
            await asyncio.sleep(POLL_S)


@dataclass
class Cluster:
    """Six nodes, three of which are primaries with a replica each."""

    nodes: Sequence[Server]

    @property
    def url(self) -> str:
        """The address for REDIS_URL; it names two nodes of the six."""
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])
        return f"redis+cluster://{USER}:{USER_PASSWORD}@{hosts}"

    async def owner(self, slot: int) -> Server:
        """The primary of a slot; see `_owners`."""
        return next(node for first, last, node in await self._owners() if first <= slot <= last)

    async def primaries(self) -> list[Server]:
        """The primaries, in the order of their slots; see `_owners`."""
        return list({node.port: node for _, _, node in await self._owners()}.values())

    async def _owners(self) -> list[tuple[int, int, Server]]:
        """The ranges of slots, when all running nodes agree on their primaries, which run too."""
        running: dict[int, Server] = {}
        views: set[tuple[tuple[int, int, int], ...]] = set()

        async def agreed() -> bool:
            running.clear()
            views.clear()
            for node in self.nodes:
                with suppress(RedisError, OSError):
                    async with client_of(node) as redis:
                        ranges = await redis.execute_command("CLUSTER", "SLOTS")
                    views.add(
                        tuple(sorted((range_[0], range_[1], range_[2][1]) for range_ in ranges))
                    )
                    running[node.port] = node
            return len(views) == 1 and all(port in running for view in views for _, _, port in view)

        await until(agreed)
        [view] = views
        return [(first, last, running[port]) for first, last, port in view]

    async def until_whole(self) -> None:
        """Return when all nodes know each other and all slots, and each primary has a replica."""
        await until(self._is_whole)

    async def mend(self) -> None:
        """Make it whole again, after any fault of its nodes."""
        for node in self.nodes:
            node.resume()
            await asyncio.to_thread(node.start)
        await self.until_whole()
        await self._set_time_out(CALM_MS)

    async def hasten(self) -> None:
        """Let a primary that does not answer be replaced soon, until `mend`."""
        await self._set_time_out(HASTY_MS)

    async def _set_time_out(self, milliseconds: int) -> None:
        for node in self.nodes:
            async with client_of(node) as redis:
                await redis.config_set("cluster-node-timeout", milliseconds)

    async def _is_whole(self) -> bool:
        replicas = 0
        for node in self.nodes:
            async with client_of(node) as redis:
                cluster = await redis.execute_command("CLUSTER INFO")
                server = await redis.info("replication")
            nodes, served = int(cluster["cluster_known_nodes"]), int(cluster["cluster_slots_ok"])
            if (cluster["cluster_state"], nodes, served) != ("ok", len(self.nodes), SLOTS):
                return False
            if server["role"] == "slave" and server["master_link_status"] == "up":
                replicas += 1
        return replicas == len(self.nodes) - PRIMARIES


async def _join(nodes: Sequence[Server]) -> None:
    """Make a cluster of separate nodes."""
    ids = []
    for number, node in enumerate(nodes):
        async with client_of(node) as redis:
            await redis.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            await redis.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
            ids.append(await redis.execute_command("CLUSTER", "MYID"))
            if number < PRIMARIES:
                first, last = (SLOTS * n // PRIMARIES for n in (number, number + 1))
                await redis.execute_command("CLUSTER", "ADDSLOTS", *range(first, last))
    for number in range(PRIMARIES, len(nodes)):
        async with client_of(nodes[number]) as redis:

            async def follow(redis: Any = redis, primary: Any = ids[number - PRIMARIES]) -> bool:
                # The gossip about its primary has to arrive first.
                return bool(await redis.execute_command("CLUSTER", "REPLICATE", primary))

            await until(follow)


@dataclass
class Watched:
    """A primary and its replica, and the Sentinels that monitor them."""

    servers: Sequence[Server]
    sentinels: Sequence[Server]

    @property
    def url(self) -> str:
        """The address for REDIS_URL."""
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}"

    async def primary(self) -> Server:
        """The primary, when its replica is in sync and all Sentinels agree."""
        await until(self._is_whole)
        port = (await self._state(self.sentinels[0]))["port"]
        return next(server for server in self.servers if server.port == port)

    async def until_promoted(self, before: Server) -> None:
        """Return when the Sentinels agree on another primary than before."""
        await until(partial(self._is_promoted, before))

    async def switch(self, before: Server) -> None:
        """Fail over; one that takes the Sentinels too long is started again."""

        async def switched() -> bool:
            if await self._is_promoted(before):
                return True
            async with client_of(self.sentinels[0], "") as redis:
                # Refused while one is under way.
                await redis.sentinel_failover(SERVICE)
            return False

        await until(switched)

    async def mend(self) -> None:
        """Make it whole again, after any fault of the servers."""
        for server in (*self.servers, *self.sentinels):
            server.resume()
            await asyncio.to_thread(server.start)
        await until(self._is_following)
        await until(self._is_whole)
        await self._set_time_out(CALM_MS)

    async def hasten(self) -> None:
        """Let a primary that does not answer be replaced soon, until `mend`."""
        await self._set_time_out(HASTY_MS)

    async def shorten_tilt(self) -> None:
        """Let Sentinels go on after a pause: they would do nothing for 30 s after one of 2 s."""
        for sentinel in self.sentinels:
            async with client_of(sentinel, "") as redis:
                with suppress(ResponseError):  # before Redis 7 it is fixed
                    await redis.execute_command("SENTINEL", "DEBUG", "TILT-PERIOD", 500)

    async def _set_time_out(self, milliseconds: int) -> None:
        for sentinel in self.sentinels:
            async with client_of(sentinel, "") as redis:
                await redis.sentinel_set(SERVICE, "down-after-milliseconds", milliseconds)

    async def _is_promoted(self, before: Server) -> bool:
        states = [await self._state(sentinel) for sentinel in self.sentinels]
        return before.port not in {state["port"] for state in states}

    async def _is_following(self) -> bool:
        """Whether the Sentinels are done; a former primary follows the new one, then.

        The Sentinels would leave it alone for 10 s.
        """
        states = [await self._state(sentinel) for sentinel in self.sentinels]
        [port, *others] = {state["port"] for state in states}
        if others or any(state["flags"] != "master" for state in states):
            return False
        for server in self.servers:
            if server.port != port:
                async with client_of(server) as redis:
                    await redis.replicaof("127.0.0.1", port)
        return True

    async def _state(self, sentinel: Server) -> Any:
        async with client_of(sentinel, "") as redis:
            masters: Any = await redis.sentinel_masters()
            return masters[SERVICE]

    async def _is_whole(self) -> bool:
        ports: set[int] = set()
        for sentinel in self.sentinels:
            state = await self._state(sentinel)
            ports.add(state["port"])
            others = len(self.sentinels) - 1
            if state["num-other-sentinels"] < others or state["num-slaves"] < 1:
                return False
        for server in self.servers:
            async with client_of(server) as redis:
                state = await redis.info("replication")
            role = "master" if ports == {server.port} else "slave"
            if state["role"] != role or state.get("master_link_status", "up") != "up":
                return False
        return True


@contextmanager
def cluster(folder: Path, program: Path) -> Iterator[Cluster]:
    """Run a cluster of six."""
    with starting(folder, program) as start:
        nodes = [start(f"node-{number}", CLUSTER_CONF) for number in range(2 * PRIMARIES)]
        made = Cluster(nodes)
        asyncio.run(_join(nodes))
        asyncio.run(made.until_whole())
        yield made


@contextmanager
def watched(folder: Path, program: Path) -> Iterator[Watched]:
    """Run a primary, a replica, and three Sentinels."""
    with starting(folder, program) as start:
        first = start("first", COMMON)
        second = start("second", f"{COMMON}replicaof 127.0.0.1 {first.port}\n")
        conf = SENTINEL_CONF.format(
            service=SERVICE, port=first.port, password=PASSWORD, calm_ms=CALM_MS
        )
        sentinels = [start(f"sentinel-{number}", conf, "--sentinel") for number in range(3)]
        made = Watched([first, second], sentinels)
        asyncio.run(made.shorten_tilt())
        asyncio.run(made.primary())
        yield made


@contextmanager
def starting(folder: Path, program: Path) -> Iterator[Callable[..., Server]]:
    """Lend a function that starts a server: name, configuration, further arguments."""
    with (
        (folder / "servers.lock").open("a") as lock,
        # A server ends with the thread that started it: this one ends last.
        ThreadPoolExecutor(1) as spawner,
        ExitStack() as stack,
    ):

        def start(name: str, conf: str, *words: str) -> Server:
            home = folder / name
            home.mkdir()
            (home / "redis.conf").write_text(conf)
            command = bound([str(program), "redis.conf", *words, "--port"])
            server = Server(
                home, folder / f"{name}.log", command, _answers, signal.SIGTERM,
                lock.fileno(), spawner, free_port(BUS),
            )  # fmt: skip
            return stack.enter_context(server)

        yield start


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=3) as peer:
        peer.sendall(b"PING\r\n")
        return bool(peer.recv(1024))
    return False
