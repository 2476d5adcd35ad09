"""The durable floor: one claim in Redis and one COPY of one row, one after the other.

The cost of durability alone, without HTTP and without contention: no gateway that claims and
commits can answer sooner. Begins RATE of them a second for DURATION seconds, one at a time, and
prints the percentiles as JSON.
"""

import asyncio
import os
import time
from datetime import UTC, datetime

import asyncpg
import msgspec
import uvloop
from redis.asyncio import Redis

from app.event import Event
from bench.testbed.figures import percentile
from sinks.timescale.encoding import COLUMNS, encode_rows

# Its own connections, prepared statements and caches are warm by then.
WARM_UP_S = 0.5
_CLAIM = """
if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 'h' end
return 's'
"""


def _event() -> Event:
    now = datetime.now(UTC)
    return Event(
        event_id=os.urandom(16),
        occurred_at=now,
        received_at=now,
        workspace_id="ws_shop",
        vendor="adjust",
        app_token="shop4ndroid1",  # noqa: S106 - no secret
        event_type="purchase",
        user_id="u1",
        adid="0" * 32,
        os_name="android",
        country="DE",
        properties={"revenue": "4999", "currency": "EUR", "event_token": "g3mz3t"},
    )


async def run(rate: float, duration_s: float) -> list[float]:
    """Return the latencies in milliseconds, sorted."""
    redis = Redis.from_url(os.environ["REDIS_URL"])
    connection = await asyncpg.connect(os.environ["DATABASE_URL"])
    claim = redis.register_script(_CLAIM)
    latencies: list[float] = []
    started = time.monotonic()
    warm_at = started + WARM_UP_S
    due = started
    while due < warm_at + duration_s:
        event = _event()
        row = memoryview(encode_rows([event]))
        await asyncio.sleep(due - time.monotonic())
        began = time.perf_counter()
        await claim(keys=[event.event_id], args=[b"floor", 15_000])
        await connection.copy_to_table(
            "events",
            source=row,  # type: ignore[arg-type]
            columns=COLUMNS,
            format="binary",
        )
        if due >= warm_at:
            latencies.append(1000 * (time.perf_counter() - began))
        due = max(due + 1 / rate, time.monotonic())
    await connection.close()
    await redis.aclose()
    return sorted(latencies)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        taken = runner.run(run(float(os.environ["RATE"]), float(os.environ["DURATION"])))
    figures = {f"p{100 * share:g}_ms": percentile(taken, share) for share in (0.5, 0.95, 0.99)}
    print(msgspec.json.encode(figures | {"count": len(taken)}).decode())
