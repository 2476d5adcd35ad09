"""The primaries that hold the claims: each script goes to the one that has its hash slot."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import attrgetter

from redis.exceptions import AskError, ResponseError, TryAgainError

from app.claims.connection import Connect, Connection, Endpoint
from app.claims.discovery import Discovery
from app.claims.time_limit import TimeLimit

# After a failure, a server is not used for this long.
BACKOFF_S = 1.0
# Discovery is repeated, after a pause, as long as answers are missing.
DISCOVERY_TIMEOUT_S = 0.5
DISCOVERY_PAUSE_S = 0.25

# The slot is on the move (MOVED is a kind of ASK); the server is well, and so are its other slots.
_ELSEWHERE = (AskError, TryAgainError)

_PACKED, _ANSWER = attrgetter("packed"), attrgetter("answer")


@dataclass(slots=True)
class Call:
    """A script with keys of one hash slot, encoded, and the answer to it."""

    slot: int
    packed: bytes
    answer: bytes | None = None


class Primaries:
    """The primaries of these hash slots, wherever they move."""

    def __init__(self, discovery: Discovery, slots: Sequence[int], connect: Connect) -> None:
        self._discovery = discovery
        self._slots = slots
        self._connect = connect
        self._limit = TimeLimit()
        self._by_slot: dict[int, _Server] = {}
        self._discovering: asyncio.Task[None] | None = None
        self._discovered = asyncio.Event()

    @property
    def is_bypassed(self) -> bool:
        """Whether some server did not answer its last calls, or none is known."""
        servers = self._by_slot.values()
        if self._discovered.is_set() and not servers:
            return True
        return any(server.backoff_until > 0 for server in servers)

    async def run(self, calls: Sequence[Call]) -> None:
        """Fill in the answer to each call, if there is one in time; raises nothing."""
        # One time limit for all calls, however many servers there are.
        with suppress(TimeoutError):
            async with asyncio.timeout(None) as timeout:
                self._limit.add(timeout)
                try:
                    if self._discovering is None:  # the first time; later ones have no waiters
                        self._discover_again()
                        await self._discovered.wait()
                    now = asyncio.get_running_loop().time()
                    by_server: dict[_Server, list[Call]] = {}
                    for call in calls:
                        server = self._by_slot.get(call.slot)
                        if server is not None and server.backoff_until <= now:
                            by_server.setdefault(server, []).append(call)
                    if len(by_server) == 1:  # always so with a single server: no task is needed
                        [(server, its_calls)] = by_server.items()
                        await server.run(its_calls)
                    else:
                        await asyncio.gather(*(s.run(its) for s, its in by_server.items()))
                finally:
                    self._limit.remove(timeout)
        if None in map(_ANSWER, calls):
            self._discover_again()

    async def close(self) -> None:
        """Close all connections."""
        if self._discovering is not None:
            self._discovering.cancel()
        for server in set(self._by_slot.values()):
            await server.close()

    def _discover_again(self) -> None:
        if self._discovering is None or self._discovering.done():
            self._discovering = asyncio.create_task(self._discover())

    async def _discover(self) -> None:
        gone: set[_Server] = set()
        with suppress(Exception):  # the next missing answer starts another discovery
            gone = self._replace(await self._discovery.discover(self._slots))
        self._discovered.set()
        for server in gone:
            with suppress(Exception):  # its connections are lost in any case
                await server.close()
        await asyncio.sleep(DISCOVERY_PAUSE_S)

    def _replace(self, primaries: Mapping[int, Endpoint]) -> set["_Server"]:
        """Use these primaries from now on, and return the servers that are none any more."""
        before, servers = set(self._by_slot.values()), list(self._by_slot.values())
        self._by_slot = {}
        for slot, endpoint in primaries.items():
            known = next((server for server in servers if server.endpoint == endpoint), None)
            server = self._by_slot[slot] = known or _Server(endpoint, self._connect)
            servers.append(server)
        return before - set(self._by_slot.values())


class _Server:
    """One Redis: its idle connections, and the end of its backoff after a failure."""

    def __init__(self, endpoint: Endpoint, connect: Connect) -> None:
        self.endpoint = endpoint
        self.backoff_until = 0.0  # in the loop's time; 0: the last calls were answered
        self._connect = connect
        self._idle: list[Connection] = []
        self._is_closed = False

    async def run(self, calls: Sequence[Call]) -> None:
        """Send the calls, and fill in their answers."""
        is_well = is_refused = False
        connection = self._idle.pop() if self._idle else self._connect(self.endpoint)
        try:
            if connection.is_connected and await connection.can_read():
                await connection.disconnect()  # the server has closed it meanwhile
            if not connection.is_connected:
                await connection.connect()
            await connection.send_packed_command(list(map(_PACKED, calls)))
            for call in calls:
                try:
                    answer = await connection.read_response()
                    call.answer = answer if isinstance(answer, bytes) else None
                except _ELSEWHERE:
                    pass
                except ResponseError:
                    is_refused = True
            is_well = not is_refused
        except Exception:  # noqa: BLE001, S110 - without an answer, the database decides
            pass
        finally:
            now = asyncio.get_running_loop().time()
            self.backoff_until = 0.0 if is_well else now + BACKOFF_S
            if is_well and not self._is_closed:
                self._idle.append(connection)
            else:  # the next call would read an answer that is late
                await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Close the idle connections; a connection in use closes after its calls."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop().disconnect()
