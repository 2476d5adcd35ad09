"""The faults of a history, each at a random moment."""

from collections.abc import Callable, Mapping

from asyncpg import exceptions

from tests.simulation.cluster import Cluster
from tests.simulation.connection import SimulatedSession
from tests.simulation.gateways import LEASE_S, SimulatedGateway
from tests.simulation.redis_server import Redis
from tests.simulation.world import Trap, World

_ERRORS = (
    exceptions.DeadlockDetectedError,
    exceptions.DeadlockDetectedError,
    exceptions.QueryCanceledError,
    exceptions.DiskFullError,
    exceptions.UniqueViolationError,
    exceptions.LockNotAvailableError,
)


class Faults:
    """The faults, by name; `mend` ends all of them that do not end by themselves."""

    def __init__(
        self,
        world: World,
        cluster: Cluster,
        redis: Redis,
        gateways: list[SimulatedGateway],
        start: Callable[[int], SimulatedGateway],
    ) -> None:
        self._world = world
        self._random = world.random
        self._cluster = cluster
        self._redis = redis
        self._gateways = gateways
        self._start = start
        self.by_name: Mapping[str, Callable[[], None]] = {
            "gateway killed": self._kill,
            "gateway restarted": self._restart,
            "gateway frozen": self._freeze,
            "gateway far from its database": self._slow_network,
            "redis flushed": redis.flush,
            "redis away": self._redis_away,
            "redis slow": self._redis_slow,
            "connection cut": self._cut,
            "connection lost before a commit": lambda: self._trap("before"),
            "connection lost after a commit": lambda: self._trap("after"),
            "session terminated": self._terminate,
            "statements cancelled": self._cancel,
            "waits for the standby cancelled": self._cancel_replication,
            "primary crashed": cluster.crash,
            "standby promoted": cluster.promote,
            "standby away": cluster.lose_standby,
            "snapshot taken": cluster.take_snapshot,
            "snapshot put back": cluster.restore,
            "error of the server": self._error,
            "rows swallowed by a trigger": self._swallow,
        }

    def inject(self) -> None:
        """Inject one of the faults."""
        name = self._random.choice(list(self.by_name))
        self._world.note("fault", name)
        self.by_name[name]()

    def mend(self) -> None:
        """End the faults of gateways, Redis and network; servers come back by themselves."""
        self._world.note("fault", "no more")
        for place, gateway in enumerate(self._gateways):
            if gateway.process.is_dead:
                self._gateways[place] = self._start(place)
            else:
                self._world.loop.thaw(gateway.process)
        self._world.trap = ""
        self._world.slow_until_s.clear()
        self._redis.is_up, self._redis.slow_s = True, 0.0
        self._cluster.primary.faults.clear()
        self._cluster.primary.swallows = lambda _row: False

    def _some_gateway(self) -> tuple[int, SimulatedGateway]:
        place = self._random.randrange(len(self._gateways))
        return place, self._gateways[place]

    def _kill(self) -> None:
        """End the process of a gateway: its tasks vanish, and the kernel closes its sockets."""
        place, gateway = self._some_gateway()
        if gateway.process.is_dead:
            return
        gateway.process.is_frozen = gateway.process.is_dead = True
        for session in self._sessions(gateway):
            session.terminate()
        self._world.later(self._random.uniform(0.05, 2.0), lambda: self._replace(place, gateway))

    def _replace(self, place: int, gateway: SimulatedGateway) -> None:
        if self._gateways[place] is gateway:
            self._gateways[place] = self._start(place)

    def _restart(self) -> None:
        """Replace a gateway in good order: it commits the accepted events."""
        place, gateway = self._some_gateway()
        if not gateway.process.is_frozen:
            self._gateways[place] = self._start(place)
            gateway.run(gateway.close())

    def _freeze(self) -> None:
        _, gateway = self._some_gateway()
        process = gateway.process
        if not process.is_frozen:
            process.is_frozen = True
            until_s = self._random.choice((0.05, 0.5, 1.5, 1.5 * LEASE_S))

            def thaw() -> None:
                if not process.is_dead:
                    self._world.loop.thaw(process)

            self._world.later(until_s, thaw)

    def _slow_network(self) -> None:
        _, gateway = self._some_gateway()
        slow_s = self._random.choice((0.05, 0.3, 1.5))
        self._world.slow_until_s[gateway.name] = self._world.loop.time() + slow_s

    def _redis_away(self) -> None:
        self._redis.stop()
        self._world.later(self._random.uniform(0.05, 3.0), self._redis_back)

    def _redis_back(self) -> None:
        self._redis.is_up = True

    def _redis_slow(self) -> None:
        self._redis.slow_s = self._random.choice((0.01, 0.04, 0.2))
        self._world.later(self._random.uniform(0.05, 2.0), self._redis_quick)

    def _redis_quick(self) -> None:
        self._redis.slow_s = 0.0

    def _sessions(self, gateway: SimulatedGateway) -> list[SimulatedSession]:
        return [session for session in self._world.sessions if session.owner is gateway.process]

    def _cut(self) -> None:
        if self._world.sessions:
            self._random.choice(self._world.sessions).cut()

    def _trap(self, trap: Trap) -> None:
        self._world.trap = trap

    def _terminate(self) -> None:
        if self._world.sessions:
            self._random.choice(self._world.sessions).backend.terminate()

    def _cancel(self) -> None:
        """Cancel every statement that waits, also for the standby, as an administrator may."""
        for session in self._world.sessions:
            session.backend.cancel()

    def _cancel_replication(self) -> None:
        """Lose the standby, and cancel the commits that wait for it."""
        self._cluster.lose_standby()
        for delay_s in (0.05, 0.1, 0.2):
            self._world.later(delay_s, self._cancel)

    def _error(self) -> None:
        error = self._random.choice(_ERRORS)
        self._cluster.primary.faults.append(error("simulated"))

    def _swallow(self) -> None:
        """Let a foreign trigger leave out the rows of one user."""
        server, user = self._cluster.primary, self._random.choice(("u1", "u2"))
        server.swallows = lambda row: row.user_id == user
        self._world.later(self._random.uniform(0.1, 2.0), self._swallow_no_more)

    def _swallow_no_more(self) -> None:
        self._cluster.primary.swallows = lambda _row: False
