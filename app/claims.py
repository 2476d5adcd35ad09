"""The claim store: who may write an event now, and what was committed before.

It makes duplicates cheap and keeps twins apart, no more: the database decides. Whatever goes
wrong here is answered as if every claim were held, and is repaired by the unique index.
"""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from hiredis import pack_command
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from app.event import Claim
from app.metrics import CLAIMS_BYPASSED
from app.settings import SettingsError

# A Redis that needs longer than this costs more than the database's own check.
CLAIM_TIMEOUT_S = 0.1
LEFT_ALONE_S = 1.0
# Settling waits for the next claim to carry it, but not for longer than this.
SETTLE_IDLE_S = 0.5
# What a lost Redis may leave behind in memory; older entries are only slower to recognise.
SETTLE_MAX = 50_000
SETTLE_AT_ONCE = 1_000

# One round trip for both: first `ARGV[4]` keys become seen, then the others are claimed.
_SETTLE_AND_CLAIM = """
for i = 1, tonumber(ARGV[4]) do
  redis.call('SET', KEYS[i], 'seen', 'PX', ARGV[3])
end
local answers = {}
for i = ARGV[4] + 1, #KEYS do
  local owner = redis.call('GET', KEYS[i])
  if not owner then
    redis.call('SET', KEYS[i], ARGV[1], 'PX', ARGV[2])
    answers[#answers + 1] = 'h'
  elseif owner == 'seen' then
    answers[#answers + 1] = 's'
  else
    answers[#answers + 1] = 'b'
  end
end
return table.concat(answers)
"""
_RELEASE = """
for _, key in ipairs(KEYS) do
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
"""
# Our own token counts as busy too: an earlier write of ours may still be on its way.
_ANSWERS = {ord("h"): Claim.HELD, ord("s"): Claim.SEEN, ord("b"): Claim.BUSY}


class Claims(Protocol):
    """What the path asks of a claim store. The owner's token is the store's own affair."""

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        """Return one claim for each event, in order. Never raises for trouble of the store."""
        ...

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        """Remember that these events are committed."""
        ...

    async def release(self, event_ids: Sequence[bytes]) -> None:
        """Give back the claims on these events, where they are still ours."""
        ...

    async def close(self) -> None:
        """Remember what is still to be remembered, and close the connections."""
        ...


def open_redis(redis_url: str, *, connect_timeout_s: float, timeout_s: float | None) -> Redis:
    """Return a client that tries everything once, each for so long; raises SettingsError.

    Without a `timeout_s`, whoever gives a command says how long it may take.
    """
    try:
        redis: Redis = Redis.from_url(
            redis_url,
            socket_timeout=timeout_s,
            socket_connect_timeout=connect_timeout_s,
            retry=Retry(NoBackoff(), 0),
        )
        # Only a connection knows which options there are; it is made here, but not opened.
        redis.connection_pool.make_connection()  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        raise SettingsError("REDIS_URL: not an address that the client understands") from None
    return redis


class RedisClaims:
    """Claims in Redis, for every process that shares the database.

    `generation` names the data that the claims are about and prefixes every key; while it is
    None nothing is known of the database, and Redis is not asked: what it remembers might
    belong to another one.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        generation: Callable[[], str | None],
        lease_s: float,
        seen_window_d: float,
    ) -> None:
        # `_ask` keeps the time: redis-py would start a task for each command to do it.
        self._redis = open_redis(redis_url, connect_timeout_s=CLAIM_TIMEOUT_S, timeout_s=None)
        self._pool: Any = self._redis.connection_pool
        self._generation = generation
        self._token = secrets.token_bytes(8)
        self._lease_ms = int(lease_s * 1000)
        self._seen_ms = int(seen_window_d * 86_400_000)
        self._settled: list[bytes] = []
        self._settler: asyncio.Task[None] | None = None
        self._left_alone_until = 0.0

    @property
    def is_bypassed(self) -> bool:
        """Whether the last thing asked of Redis was not answered in time."""
        return self._left_alone_until > 0.0

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        """See `Claims`. Carries what is to be settled along in the same round trip."""
        generation = self._generation()
        answers = None
        if generation is not None and not self._is_left_alone():
            answers = await self._run(self._take_settled(), _keys(generation, event_ids))
        if answers is None:
            CLAIMS_BYPASSED.inc()
            return [Claim.HELD] * len(event_ids)
        return [_ANSWERS[answer] for answer in answers]

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        """See `Claims`. Only notes the events: the next claim takes them to Redis."""
        generation = self._generation()
        if generation is None:
            return
        self._settled += _keys(generation, event_ids)
        del self._settled[:-SETTLE_MAX]
        if self._settler is None:
            self._settler = asyncio.create_task(self._settle_when_idle())

    async def release(self, event_ids: Sequence[bytes]) -> None:
        """See `Claims`. What cannot be released now ends with its lease."""
        generation = self._generation()
        if generation is not None and event_ids and not self._is_left_alone():
            await self._ask(_RELEASE, _keys(generation, event_ids), [self._token])

    async def close(self) -> None:
        """See `Claims`."""
        if self._settler is not None:
            self._settler.cancel()
        while self._settled and not self._is_left_alone():
            await self._run(self._take_settled(), [])
        await self._redis.aclose()

    async def _settle_when_idle(self) -> None:
        while self._settled:
            await asyncio.sleep(SETTLE_IDLE_S)
            while self._settled and not self._is_left_alone():
                await self._run(self._take_settled(), [])
        self._settler = None

    def _take_settled(self) -> list[bytes]:
        """Return what fits into one round trip."""
        settled = self._settled[:SETTLE_AT_ONCE]
        del self._settled[:SETTLE_AT_ONCE]
        return settled

    async def _run(self, settled: list[bytes], claimed: list[bytes]) -> bytes | None:
        arguments = (self._token, self._lease_ms, self._seen_ms, len(settled))
        answers = await self._ask(_SETTLE_AND_CLAIM, settled + claimed, arguments)
        return answers if answers is not None and len(answers) == len(claimed) else None

    async def _ask(
        self, script: str, keys: Sequence[bytes], arguments: Sequence[Any]
    ) -> bytes | None:
        """Return the script's answer; None where there was none in time."""
        try:
            # A command that is given up closes its connection: a late answer would be taken for
            # the answer to the next one.
            async with asyncio.timeout(CLAIM_TIMEOUT_S):
                connection = await self._pool.get_connection()
                try:
                    # redis-py's own way to run a script takes 121 µs for a batch of 32, this 61.
                    command = pack_command(("EVAL", script, len(keys), *keys, *arguments))
                    await connection.send_packed_command(command)
                    answer: bytes = await connection.read_response()
                finally:
                    await self._pool.release(connection)
        except Exception:  # noqa: BLE001 - whatever it is, the database decides
            self._left_alone_until = asyncio.get_running_loop().time() + LEFT_ALONE_S
            return None
        self._left_alone_until = 0.0
        return answer

    def _is_left_alone(self) -> bool:
        return asyncio.get_running_loop().time() < self._left_alone_until


def _keys(generation: str, event_ids: Sequence[bytes]) -> list[bytes]:
    prefix = generation.encode()
    return [prefix + event_id for event_id in event_ids]
