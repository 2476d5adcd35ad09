"""Polling of the servers and of HAProxy for the moments of a failover."""

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime

import asyncpg

from bench.failover.timeline import Failover, Moment
from bench.testbed.haproxy import HAProxy
from bench.topologies.node import Node
from bench.topologies.patroni import SUPERUSER, Cluster
from bench.topologies.servers import AWAY, superuser_connection

WATCH_S = 0.05
_STATE = """
SELECT NOT pg_is_in_recovery() AS is_primary,
    (SELECT min(extract(epoch FROM backend_start))::float8 FROM pg_stat_activity
        WHERE application_name = 'flokit-gateway') AS connected_at,
    EXISTS (SELECT FROM pg_stat_replication
        WHERE state = 'streaming' AND sync_state IN ('sync', 'quorum')) AS has_standby
"""
# PostgreSQL's own line, in the log of Patroni, which starts it.
_REQUEST = re.compile(r"^(\S+ \S+) UTC \[\d+\] LOG:  received promote request$", re.MULTILINE)


class Watcher:
    """Observes every node, from `watching` on; `failover` is the one under way."""

    def __init__(self, cluster: Cluster) -> None:
        self.failover: Failover | None = None
        self.former: Node | None = None  # the primary of before
        self._cluster = cluster
        self._promoted = asyncio.Event()
        self.watching: list[asyncio.Task[None]] = []

    def begin(self, failover: Failover, former: Node) -> None:
        """Note the moments of this failover from now on."""
        self.failover, self.former = failover, former
        self._promoted.clear()

    async def until_promoted(self) -> Node:
        """Return the new primary, with the moments of its promotion noted."""
        assert self.failover is not None
        promoted = asyncio.create_task(self._promoted.wait())
        try:
            ended, _ = await asyncio.wait(
                (promoted, *self.watching), return_when=asyncio.FIRST_COMPLETED
            )
            for task in ended - {promoted}:
                task.result()
        finally:
            promoted.cancel()
        leader = await self._cluster.until_leader()
        requests: list[str] = _REQUEST.findall(leader.log.read_text(errors="replace"))
        self.failover.note(
            Moment.REQUESTED,
            datetime.fromisoformat(requests[-1]).replace(tzinfo=UTC).timestamp(),
        )
        return leader

    async def watch_node(self, node: Node) -> None:
        """Observe one server, also while it is away."""
        while True:
            with suppress(*AWAY):
                async with superuser_connection(node, SUPERUSER, user=SUPERUSER) as connection:
                    while True:
                        for state in await connection.fetch(_STATE):
                            self._note(node, state)
                        await asyncio.sleep(WATCH_S)
            await asyncio.sleep(WATCH_S)

    def _note(self, node: Node, state: asyncpg.Record) -> None:
        failover = self.failover
        if failover is None or node is self.former or not state["is_primary"]:
            return
        now = time.time()
        failover.note(Moment.PROMOTED, now)
        self._promoted.set()
        if state["connected_at"] is not None:
            failover.note(Moment.CONNECTED, state["connected_at"])
        if state["has_standby"]:
            failover.note(Moment.STANDBY, now)

    async def watch_proxy(self, proxy: HAProxy) -> None:
        """Observe the states of HAProxy's servers."""
        while True:
            states = await asyncio.to_thread(proxy.states)
            if self.failover is not None and self.former is not None:
                up = {name for name, state in states.items() if state == "UP"}
                if up - {self.former.name}:
                    self.failover.note(Moment.ROUTED, time.time())
            await asyncio.sleep(WATCH_S)


@asynccontextmanager
async def watching(cluster: Cluster, proxy: HAProxy | None) -> AsyncIterator[Watcher]:
    """Lend a watcher of the servers, and of HAProxy where there is one."""
    watcher = Watcher(cluster)
    tasks = watcher.watching
    tasks += [asyncio.create_task(watcher.watch_node(node)) for node in cluster.nodes]
    if proxy is not None:
        tasks.append(asyncio.create_task(watcher.watch_proxy(proxy)))
    try:
        yield watcher
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
