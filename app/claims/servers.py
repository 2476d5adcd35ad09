"""The servers that hold the claims: a script goes to where its keys are, several go all at once."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from hiredis import pack_command
from redis.exceptions import AskError, ResponseError, TryAgainError

from app.claims.addresses import Address, Finder, Place, connections

# A Redis that needs longer than this costs more than the database's own check.
CLAIM_TIMEOUT_S = 0.1
# The time is taken in pieces. One that ends late does not count, since something else held the loop
# meanwhile, and an answer may lie in the socket unread; where all are late, so many count as one.
PIECE_S = 0.02
LATE_S = 0.01
LATE_PIECES = 4
LEFT_ALONE_S = 1.0
# While something is not answered, the primaries are looked for again and again.
SEARCH_TIMEOUT_S = 0.5
SEARCH_PAUSE_S = 0.25

# The slot is on the move (MOVED is a kind of ASK): the server is well, its other slots are there.
_ELSEWHERE = (AskError, TryAgainError)


class Call(NamedTuple):
    """A script whose keys are all in one slot."""

    slot: int
    words: tuple[Any, ...]  # texts, bytes and numbers


class Servers:
    """All primaries that have keys in these slots, whichever servers that are now."""

    def __init__(self, address: Address, slots: Sequence[int]) -> None:
        self._finder = Finder(address, SEARCH_TIMEOUT_S)
        self._slots = slots
        self._by_slot: dict[int, _Server] = {}
        self._search: asyncio.Task[None] | None = None
        self._searched = asyncio.Event()

    @property
    def is_bypassed(self) -> bool:
        """Whether some server did not answer the last time, or none is known."""
        servers = self._by_slot.values()
        if self._searched.is_set() and not servers:
            return True
        return any(server.left_alone_until > 0 for server in servers)

    async def run(self, calls: Sequence[Call]) -> Sequence[bytes | None]:
        """Return the answer to each script; None where there was none in time."""
        answers: list[bytes | None] = [None] * len(calls)
        with suppress(TimeoutError):
            # One limit for all of it, however many servers there are.
            async with _Limit():
                if self._search is None:  # the first time; later on nobody waits for it
                    self._look_again()
                    await self._searched.wait()
                await self._ask(calls, answers)
        if None in answers:
            self._look_again()
        return answers

    async def close(self) -> None:
        """Close all connections."""
        if self._search is not None:
            self._search.cancel()
        for server in set(self._by_slot.values()):
            await server.close()

    async def _ask(self, calls: Sequence[Call], answers: list[bytes | None]) -> None:
        now = asyncio.get_running_loop().time()
        asked: dict[_Server, list[int]] = {}
        for number, call in enumerate(calls):
            server = self._by_slot.get(call.slot)
            if server is not None and server.left_alone_until <= now:
                asked.setdefault(server, []).append(number)
        asking = [server.ask(calls, numbers, answers) for server, numbers in asked.items()]
        if len(asking) == 1:  # as always with a single server: a task would cost 6 µs
            await asking[0]
        else:
            await asyncio.gather(*asking)

    def _look_again(self) -> None:
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self._look())

    async def _look(self) -> None:
        gone: Collection[_Server] = ()
        with suppress(Exception):  # whatever it is: whoever is not answered looks again
            gone = self._take(await self._finder.find(self._slots))
        self._searched.set()
        for server in gone:
            with suppress(Exception):  # it is lost in any case
                await server.close()
        await asyncio.sleep(SEARCH_PAUSE_S)

    def _take(self, primaries: Mapping[int, Place]) -> Collection["_Server"]:
        """Ask these from now on, and return the servers that are not asked any more."""
        before, servers = set(self._by_slot.values()), list(self._by_slot.values())
        self._by_slot = {}
        for slot, place in primaries.items():
            known = next((server for server in servers if server.place == place), None)
            servers.append(self._by_slot.setdefault(slot, known or _Server(place)))
        return before - set(self._by_slot.values())


class _Limit:
    """Raises TimeoutError after CLAIM_TIMEOUT_S in which the loop was free to read an answer."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timeout = asyncio.timeout(None)
        self._left_s = CLAIM_TIMEOUT_S

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()
        self._begin_piece()

    async def __aexit__(self, *error: Any) -> None:  # noqa: PYI036 - of three kinds
        self._timer.cancel()
        await self._timeout.__aexit__(*error)

    def _begin_piece(self) -> None:
        self._due = self._loop.time() + min(PIECE_S, self._left_s)
        self._timer = self._loop.call_at(self._due, self._end_piece)

    def _end_piece(self) -> None:
        is_late = self._loop.time() - self._due > LATE_S
        self._left_s -= PIECE_S / LATE_PIECES if is_late else PIECE_S
        if self._left_s > 0:
            self._begin_piece()
        else:
            self._timeout.reschedule(self._loop.time())


class _Server:
    """One Redis, the connections to it, and whether it is left alone for a while."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.left_alone_until = 0.0
        # `run` keeps the time: redis-py would start a task for each command to do it.
        self._pool = connections(place, None)
        # To borrow one from the pool and to give it back costs 7 µs, this 1.
        self._idle: list[Any] = []
        self._is_closed = False

    async def ask(
        self, calls: Sequence[Call], numbers: Sequence[int], answers: list[bytes | None]
    ) -> None:
        """Run the calls of these numbers, and put each answer in its place."""
        is_well = False
        connection: Any = self._idle.pop() if self._idle else self._pool.make_connection()  # type: ignore[no-untyped-call]
        try:
            if connection.is_connected and await connection.can_read():
                await connection.disconnect()  # the server has closed it meanwhile
            await connection.connect()
            # redis-py's own way to run a script takes 121 µs for a batch of 32, this 61.
            packed = [pack_command(calls[number].words) for number in numbers]
            await connection.send_packed_command(packed)
            is_well = await _read(connection, numbers, answers)
        except Exception:  # noqa: BLE001, S110 - whatever it is, the database decides
            pass
        finally:
            now = asyncio.get_running_loop().time()
            self.left_alone_until = 0.0 if is_well else now + LEFT_ALONE_S
            if is_well and not self._is_closed:
                self._idle.append(connection)
            else:  # a late answer would be taken for the answer to the next call
                await connection.disconnect(nowait=True)

    async def close(self) -> None:
        """Close the connections; one that is in use closes after that."""
        self._is_closed = True
        while self._idle:
            await self._idle.pop().disconnect()


async def _read(connection: Any, numbers: Sequence[int], answers: list[bytes | None]) -> bool:
    """Put each answer in its place; return whether the server is well."""
    is_well = True
    for number in numbers:
        try:
            answers[number] = await connection.read_response()
        except ResponseError as error:
            is_well = is_well and isinstance(error, _ELSEWHERE)
    return is_well
