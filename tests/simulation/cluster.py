"""A primary and its synchronous standby, or one server alone: crashes, failovers, restores."""

from collections.abc import Callable
from datetime import timedelta
from random import Random

from tests.simulation.database import Data, Row, Server, Standby
from tests.simulation.world import BEGAN_AT, World

HOSTS = ("db-a", "db-b")
DATABASE_URL = f"postgresql://gateway@{','.join(HOSTS)}/events"
# A restore takes longer than a gateway remembers the name of the data.
RESTORE_S = (4.0, 6.0)


class Cluster:
    """The hosts of DATABASE_URL, and the one of them that is the primary by right."""

    def __init__(self, world: World) -> None:
        random = world.random
        self._world = world
        self._random: Random = random
        self.primary = Server(world, Data(), deadlock_timeout_s=random.choice((0.02, 1.0)))
        self.primary.is_pooled = random.random() < 0.15
        self.primary.is_role_lax = random.random() < 0.3
        self.primary.names_rows = random.random() < 0.7
        if random.random() < 0.5:
            self.primary.days = {(BEGAN_AT + timedelta(days=day)).date() for day in (0, 1)}
        self._away = Server(world, Data(), deadlock_timeout_s=1.0)
        self._away.is_primary = False
        self._away.is_up = self.primary.is_synchronous = random.random() < 0.75
        world.hosts |= dict(zip(HOSTS, (self.primary, self._away), strict=True))
        if self.primary.is_synchronous:
            self.primary.attach()
        self._is_busy = False
        self._snapshot = Data()
        # Called with the data before and after a snapshot was put back.
        self.on_restore: Callable[[Data, Data], None] = lambda _before, _after: None

    @property
    def safe(self) -> list[Row]:
        """The rows that no crash and no failover can lose."""
        primary = self.primary
        return (primary.safe if primary.is_synchronous else primary.logged).rows()

    @property
    def standby(self) -> Standby | None:
        """The standby of the primary, if there is one."""
        return self.primary.standby

    def crash(self) -> None:
        """End the primary and start it again: every commit in its WAL is visible then."""
        if not self._is_busy:
            self._is_busy = True
            self._stop(self.primary)
            self._world.later(self._random.uniform(0.05, 2.0), self._start)

    def promote(self) -> None:
        """Make the standby the primary; the old one may write on for some seconds."""
        old, standby = self.primary, self.primary.standby
        if self._is_busy or standby is None:
            return
        self._is_busy = True
        old.standby = None
        new = self.primary = Server(
            self._world, standby.data.copy(), deadlock_timeout_s=old.deadlock_timeout_s
        )
        new.safe = standby.data
        new.timeline, new.is_synchronous = old.timeline + 1, True
        new.is_pooled, new.is_role_lax, new.days = old.is_pooled, old.is_role_lax, set(old.days)
        new.swallows, new.names_rows = old.swallows, old.names_rows
        for name, server in self._world.hosts.items():
            if server is not old:
                self._world.hosts[name] = new
        split_brain_s = self._random.choice((0.0, 0.0, 2.0)) * self._random.random()
        self._world.later(split_brain_s, lambda: self._stop(old))
        self._world.later(split_brain_s + self._random.uniform(0.1, 3.0), self._rejoin)

    def restore(self) -> None:
        """Put a snapshot of the disk back: it stays on its timeline."""
        if self._is_busy:
            return
        self._is_busy = True
        self._stop(self.primary)
        self._world.later(self._random.uniform(*RESTORE_S), self._start_restored)

    def take_snapshot(self) -> None:
        """Copy the disk of the primary."""
        self._snapshot = self.primary.logged.copy()

    def lose_standby(self) -> None:
        """Stop the replication for a while."""
        standby = self.primary.standby
        if standby is not None and not standby.is_away:
            standby.is_away = True
            self._world.later(self._random.uniform(0.2, 3.0), lambda: self._return(standby))

    def _return(self, standby: Standby) -> None:
        standby.is_away = False
        self.primary.ship()

    def _stop(self, server: Server) -> None:
        server.is_up = False
        server.crash()

    def _start(self) -> None:
        self._is_busy = False
        self.primary.is_up = True
        self.primary.started_at_s = self._world.loop.time()
        self.primary.ship()

    def _start_restored(self) -> None:
        primary, before, after = self.primary, self.primary.logged, self._snapshot.copy()
        primary.data, primary.logged, primary.wal = after, after.copy(), []
        primary.safe = primary.logged
        if primary.is_synchronous:
            primary.attach()
        self._start()
        # Until now Redis may have answered for the rows that are lost.
        self.on_restore(before, after)

    def _rejoin(self) -> None:
        """Let the old primary come back as a standby."""
        self._is_busy = False
        for name, server in self._world.hosts.items():
            if server is not self.primary:
                self._world.hosts[name] = self._away
        self.primary.attach()
