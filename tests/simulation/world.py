"""The world around the gateways: time, chance, the network, and a trace of all that happens."""

from collections.abc import Callable
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from random import Random
from typing import TYPE_CHECKING, Literal, NamedTuple

from tests.simulation import sql
from tests.simulation.database import Server
from tests.simulation.loop import PROCESS, Loop, Process

if TYPE_CHECKING:
    from tests.simulation.connection import SimulatedSession

BEGAN_AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
# One delay in so many is much longer than the others.
LONG_DELAY_EVERY = 25
_LATENCY_S = 0.0004
Trap = Literal["", "before", "after"]


class Note(NamedTuple):
    """A line of the trace."""

    at_s: float
    place: str
    text: str


class World:
    """The clock, the chance, the hosts and the network of one history."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)  # noqa: S311 - repeatable on purpose
        self.loop = Loop(Random(seed + 1))  # noqa: S311 - likewise
        self.hosts: dict[str, Server] = {}
        self.processes: list[Process] = []
        self.sessions: list[SimulatedSession] = []
        self.trace: list[Note] = []
        self.violations: list[str] = []
        # The next message that commits, of any gateway, loses its connection.
        self.trap: Trap = ""
        self.slow_until_s: dict[str, float] = {}
        self._outside: Context = copy_context()
        self._outside.run(PROCESS.set, None)

    def wall_s(self) -> float:
        """Return the time of the wall clock, in Unix seconds."""
        return BEGAN_AT.timestamp() + self.loop.time()

    def now(self) -> datetime:
        """Return the time of the wall clock."""
        return BEGAN_AT + timedelta(seconds=self.loop.time())

    def later(self, delay_s: float, callback: Callable[[], object]) -> None:
        """Call back after a delay, in no gateway's process."""
        self.loop.call_later(delay_s, callback, context=self._outside)

    def at(self, process: Process, delay_s: float, callback: Callable[[], object]) -> None:
        """Call back in a process after a delay: later where it is frozen, never when it is dead."""
        self.loop.call_later(delay_s, callback, context=process.context)

    def delay_s(self, usual_s: float) -> float:
        """Return a random delay, as a rule about the usual one."""
        drawn = self.random.random()
        if drawn * LONG_DELAY_EVERY < 1:
            return usual_s * 50 * self.random.random()
        return usual_s * (0.5 + drawn)

    def transit_s(self, session: "SimulatedSession") -> float:
        """Return the time of a message between a gateway and its server."""
        slow_s = self.slow_until_s.get(session.owner.name, 0.0) - self.loop.time()
        return self.delay_s(_LATENCY_S) + max(slow_s, 0.0)

    def spring_trap(self, session: "SimulatedSession", message: str) -> Trap:
        """Return the fault of a message that commits."""
        trap = self.trap
        is_write = sql.write_of(message) is not None
        is_commit = message == "COMMIT" or (is_write and not session.backend.is_in_transaction)
        if not trap or not is_commit:
            return ""
        self.trap = ""
        self.note(session.owner.name, f"loses its connection {trap} {message.split(maxsplit=1)[0]}")
        return trap

    def note(self, place: str, text: str) -> None:
        """Add a line to the trace."""
        self.trace.append(Note(self.loop.time(), place, text))

    def broken(self, text: str) -> None:
        """Note a broken promise."""
        self.note("verdict", text)
        self.violations.append(text)

    def digest(self) -> str:
        """Return a hash of the whole trace."""
        text = f"{self.trace} {self.loop.steps} {self.loop.time()}"
        return blake2b(text.encode(), digest_size=8).hexdigest()
