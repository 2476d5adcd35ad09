"""A model of Redis: the scripts of the claims, by their text, with leases that expire."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from redis.exceptions import ConnectionError as RedisConnectionError

from app.claims import scripts
from bench.sabotage.claims import RELEASE_OF_ANY
from tests.simulation.loop import PROCESS, Process
from tests.simulation.world import World

_LATENCY_S = 0.0002
_SETTLE_AND_CLAIM, _RELEASE = scripts._SETTLE_AND_CLAIM, scripts._RELEASE
_SEEN = b"seen"


class UnknownScript(Exception):
    """The claims have sent a script that the model does not know."""


class Redis:
    """One server, and the process that holds each lease."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.is_up = True
        self.slow_s = 0.0
        self.generation = 0  # of the connections: those of an older one are broken
        self._values: dict[bytes, tuple[bytes, float]] = {}
        self._holders: dict[bytes, Process] = {}
        self._scripts: Mapping[str, Callable[[Sequence[bytes], Sequence[bytes], Process], bytes]]
        self._scripts = {
            _SETTLE_AND_CLAIM: self._settle_and_claim,
            _RELEASE: self._release,
            RELEASE_OF_ANY: self._release_any,
        }

    def flush(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._holders.clear()

    def stop(self) -> None:
        """Refuse connections, and break the open ones."""
        self.is_up = False
        self.generation += 1

    def run(self, packed: bytes, process: Process) -> bytes:
        """Run one encoded command."""
        name, script, number, *rest = _words(packed)
        known = self._scripts.get(script.decode())
        if name != b"EVAL" or known is None:
            raise UnknownScript(script)
        keys = int(number)
        return known(rest[:keys], rest[keys:], process)

    def _get(self, key: bytes) -> bytes | None:
        value, expires_at = self._values.get(key, (None, 0.0))
        return value if expires_at > self.world.loop.time() else None

    def _set(self, key: bytes, value: bytes, lifetime_ms: bytes) -> None:
        self._values[key] = (value, self.world.loop.time() + int(lifetime_ms) / 1000)

    def _settle_and_claim(
        self, keys: Sequence[bytes], arguments: Sequence[bytes], process: Process
    ) -> bytes:
        token, lease_ms, seen_ms, settled = arguments
        for key in keys[: int(settled)]:
            self._set(key, _SEEN, seen_ms)
        answers = b""
        for key in keys[int(settled) :]:
            owner = self._get(key)
            if owner is None:
                self._set(key, token, lease_ms)
                self._holders[key] = process
                answers += b"h"
            else:
                answers += b"s" if owner == _SEEN else b"b"
        return answers

    def _release(
        self, keys: Sequence[bytes], arguments: Sequence[bytes], process: Process
    ) -> bytes:
        (token,) = arguments
        return self._release_any([key for key in keys if self._get(key) == token], [], process)

    def _release_any(
        self, keys: Sequence[bytes], _arguments: Sequence[bytes], process: Process
    ) -> bytes:
        for key in keys:
            if self._get(key) in (None, _SEEN):
                continue
            del self._values[key]
            if self._holders[key] is not process:
                self.world.note("redis", f"lease of {self._holders[key].name} released")
                self.world.broken(f"released: {process.name} gives back another's lease")
        return b""


class RedisConnection:
    """A connection to the model; see `app.claims.connection`."""

    def __init__(self, redis: Redis) -> None:
        process = PROCESS.get()
        assert process is not None
        self._redis = redis
        self._process = process
        self._generation = -1
        self._replies: list[asyncio.Future[bytes]] = []

    @property
    def is_connected(self) -> bool:
        """See the protocol."""
        return self._generation >= 0

    async def connect(self) -> None:
        """See the protocol."""
        await asyncio.sleep(self._delay_s())
        if not self._redis.is_up:
            raise RedisConnectionError("refused")
        self._generation = self._redis.generation

    async def can_read(self) -> bool:
        """See the protocol."""
        return self._generation != self._redis.generation

    async def send_packed_command(self, command: Sequence[bytes]) -> None:
        """See the protocol."""
        for packed in command:
            reply = asyncio.get_running_loop().create_future()
            self._replies.append(reply)
            self._redis.world.later(self._delay_s(), partial(self._arrive, packed, reply))

    async def read_response(self) -> object:
        """See the protocol."""
        return await self._replies.pop(0)

    async def disconnect(self, nowait: bool = False) -> None:
        """See the protocol."""
        del nowait
        self._generation = -1
        self._replies = []

    def _delay_s(self) -> float:
        return self._redis.world.delay_s(_LATENCY_S) + self._redis.slow_s

    def _arrive(self, packed: bytes, reply: "asyncio.Future[bytes]") -> None:
        redis, generation = self._redis, self._generation
        answer = redis.run(packed, self._process) if redis.is_up else b""

        def deliver() -> None:
            if reply.done():
                return
            if redis.is_up and redis.generation == generation:
                reply.set_result(answer)
            else:
                reply.set_exception(RedisConnectionError("closed by the server"))
                reply.exception()  # the caller may have given up

        redis.world.at(self._process, self._delay_s(), deliver)


def _words(packed: bytes) -> list[bytes]:
    """Return the words of an encoded command."""
    head, _, rest = packed.partition(b"\r\n")
    words = []
    for _ in range(int(head[1:])):
        size, _, rest = rest.partition(b"\r\n")
        length = int(size[1:])
        words.append(rest[:length])
        rest = rest[length + 2 :]
    return words
