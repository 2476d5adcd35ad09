"""A primary and its synchronous standby on loopback, and their failovers."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.dev.processes import Server
from app.dev.programs import Programs
from bench.testbed.threads import in_thread
from bench.topologies.maker import NAMES, PAIR_CONF, Maker, making
from bench.topologies.servers import ALONE, execute, fetch_value, until, until_primary


@dataclass
class Pair:
    """A primary and a standby, without which it commits nothing: see `until_synchronous`."""

    maker: Maker
    primary: Server
    standby: Server
    has_failed_over: bool = False  # the standby has another history

    async def sync_state(self) -> str | None:
        """The primary's state of the standby: `sync`, or None while it does not stream."""
        state: str | None = await fetch_value(
            self.primary,
            "SELECT max(sync_state) FROM pg_stat_replication "
            "WHERE application_name = $1 AND state = 'streaming'",
            self.standby.name,
        )
        return state

    async def until_synchronous(self) -> None:
        """Return when the standby has all that the primary has, and every commit waits for it."""

        async def is_synchronous() -> bool:
            return await self.sync_state() == "sync"

        await until(is_synchronous)
        here = await fetch_value(self.primary, "SELECT pg_current_wal_lsn()::text")
        replayed = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn"
        await until(lambda: fetch_value(self.standby, replayed, here))

    async def promote(self) -> None:
        """Make the standby the primary, which goes on alone; the other is left as it is."""
        await execute(self.standby, *ALONE)
        await self.promote_as_it_is()

    async def promote_as_it_is(self) -> None:
        """Promote the standby with its copied settings: its commits wait for a missing standby."""
        await execute(self.standby, "SELECT pg_promote()")
        self.primary, self.standby = self.standby, self.primary
        self.has_failed_over = True
        await until_primary(self.primary)

    async def rejoin(self) -> None:
        """Make a synchronous standby of the other server, on a copy of the primary's disk."""
        await in_thread(self.maker.rejoin, self.standby, self.primary)
        self.has_failed_over = False
        await self.wait_for_standby()

    async def rewind(self) -> None:
        """Make a synchronous standby of a former primary, whose disk is rewound."""
        await in_thread(self.maker.rewind, self.standby, self.primary)
        self.has_failed_over = False
        await self.wait_for_standby()

    async def follow(self) -> None:
        """Make a synchronous standby of a former primary that was shut down cleanly."""
        await in_thread(self.maker.follow, self.standby, self.primary)
        self.has_failed_over = False
        await self.wait_for_standby()

    async def wait_for_standby(self) -> None:
        """From now on the primary commits nothing without its standby, and so after a promotion."""
        for server in (self.primary, self.standby):
            await execute(
                server, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"
            )
        await self.until_synchronous()
        # pg_rewind reads the WAL from the last checkpoint on that both have; that of a promotion is
        # spread over seconds, and the next fault may interrupt it.
        await execute(self.primary, "CHECKPOINT")

    async def mend(self) -> None:
        """Repair the pair after any fault of either server."""
        self.primary.resume()
        await in_thread(self.primary.start)
        if self.has_failed_over:
            await self.rejoin()
            return
        self.standby.resume()
        await in_thread(self.standby.start)
        await self.wait_for_standby()


@contextmanager
def open_pair(folder: Path, programs: Programs) -> Iterator[Pair]:
    """Run a primary and its synchronous standby on disks in this folder."""
    folder.mkdir(exist_ok=True)
    with making(folder, programs) as maker:
        primary = maker.primary(NAMES[0], PAIR_CONF)
        pair = Pair(maker, primary, maker.standby(NAMES[1], primary))
        asyncio.run(pair.wait_for_standby())
        yield pair
