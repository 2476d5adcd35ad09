"""The faults: each strikes while callbacks are coming, and returns when all is left alone again."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from random import Random

from bench.testbed.environment import CLAIM_LEASE_S, COMMIT_TIMEOUT_S, Stage
from bench.testbed.gateway import BenchError, Gateway
from bench.testbed.proxy import Moment

Fault = Callable[[Stage, Gateway, Random], Awaitable[None]]
# By name, in the order of this file.
FAULTS: dict[str, Fault] = {}

_READ_ONLY = "ALTER SYSTEM SET default_transaction_read_only = {}"
_BACKENDS = (
    "SELECT pid FROM pg_stat_activity WHERE application_name = 'flokit-gateway' ORDER BY pid"
)
_FULL = """
CREATE FUNCTION bench_full() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100';
END $$
"""
_FULL_TRIGGER = (
    "CREATE TRIGGER bench_full BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION bench_full()"
)


def _fault(function: Fault) -> Fault:
    FAULTS[function.__name__] = function
    return function


@_fault
async def gateway_killed_between_claim_and_commit(_: Stage, gateway: Gateway, __: Random) -> None:
    """The process is gone when its events are claimed, and none is written."""
    await _kill_at(gateway, Moment.BEFORE_COPY)


@_fault
async def gateway_killed_in_copy(_: Stage, gateway: Gateway, __: Random) -> None:
    """The process is gone when half of its rows are on the server."""
    await _kill_at(gateway, Moment.IN_COPY)


@_fault
async def gateway_killed_before_commit(_: Stage, gateway: Gateway, __: Random) -> None:
    """The process is gone when its rows are written, and not committed."""
    await _kill_at(gateway, Moment.BEFORE_COMMIT)


@_fault
async def gateway_killed_between_commit_and_answer(_: Stage, gateway: Gateway, __: Random) -> None:
    """The process is gone when its rows are committed, and nobody has been told."""
    await _kill_at(gateway, Moment.AFTER_COMMIT)


@_fault
async def gateway_killed_at_random(_: Stage, gateway: Gateway, random: Random) -> None:
    """The process is gone at any moment."""
    await asyncio.sleep(random.uniform(0, 0.5))
    await gateway.kill()
    await gateway.start()


@_fault
async def gateway_frozen_in_copy(_: Stage, gateway: Gateway, __: Random) -> None:
    """The process stands still in the middle of a COPY until its claims have ended, and wakes."""
    await _freeze_at(gateway, Moment.IN_COPY)


@_fault
async def gateway_frozen_before_commit(_: Stage, gateway: Gateway, __: Random) -> None:
    """The same when its rows are written: it holds their locks against all twins."""
    await _freeze_at(gateway, Moment.BEFORE_COMMIT)


@_fault
async def gateway_terminated(_: Stage, gateway: Gateway, __: Random) -> None:
    """The process is asked to end, under load."""
    gateway.signal(signal.SIGTERM)
    exit_code = await gateway.wait()
    if exit_code:
        raise BenchError(f"exit code {exit_code} after SIGTERM, see {gateway.log}")
    await gateway.start()


@_fault
async def redis_killed(stage: Stage, _: Gateway, random: Random) -> None:
    """Redis is gone for a while, and forgets what it had not saved."""
    await asyncio.to_thread(stage.servers.redis.kill)
    await asyncio.sleep(random.uniform(0.5, 2))
    await asyncio.to_thread(stage.servers.redis.start)


@_fault
async def redis_flushed(stage: Stage, _: Gateway, random: Random) -> None:
    """Redis forgets everything, a few times."""
    async with stage.redis() as redis:
        for _turn in range(3):
            await redis.flushall()
            await asyncio.sleep(random.uniform(0.1, 0.3))


@_fault
async def redis_paused(stage: Stage, _: Gateway, random: Random) -> None:
    """Redis does not answer for a while; its connections stay open."""
    stage.servers.redis.pause()
    await asyncio.sleep(random.uniform(1, 3))
    stage.servers.redis.resume()


@_fault
async def redis_blackholed(_: Stage, gateway: Gateway, random: Random) -> None:
    """Nothing passes any more between one gateway and Redis, and nobody is told."""
    gateway.redis.blackhole()
    await asyncio.sleep(random.uniform(0.5, 2))
    gateway.redis.restore()


@_fault
async def redis_back_with_old_data(stage: Stage, _: Gateway, random: Random) -> None:
    """Redis comes back as it was a while ago: with claims that have ended, without what came."""
    async with stage.redis() as redis:
        await redis.save()
    await asyncio.sleep(random.uniform(0.5, 2))
    await asyncio.to_thread(stage.servers.redis.kill)
    await asyncio.to_thread(stage.servers.redis.start)


@_fault
async def database_stopped(stage: Stage, _: Gateway, random: Random) -> None:
    """PostgreSQL is stopped in `immediate` mode, and recovers from its log."""
    await asyncio.to_thread(stage.servers.postgres.stop, signal.SIGQUIT)
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(stage.servers.postgres.start)


@_fault
async def backend_killed(stage: Stage, _: Gateway, random: Random) -> None:
    """One connection's server process is killed, and PostgreSQL restarts all of them."""
    connection = await stage.connect()
    while not (pids := await connection.fetch(_BACKENDS)):  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    await connection.close()
    os.kill(random.choice(pids)["pid"], signal.SIGKILL)


@_fault
async def database_paused(stage: Stage, _: Gateway, random: Random) -> None:
    """PostgreSQL does not answer for longer than a commit may take."""
    stage.servers.postgres.pause()
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.5, 2))
    stage.servers.postgres.resume()


@_fault
async def connection_cut_in_copy(_: Stage, gateway: Gateway, __: Random) -> None:
    """The connection is reset when half of the rows are on the server."""
    (await gateway.database.catch(Moment.IN_COPY)).cut()


@_fault
async def connection_cut_before_the_answer(_: Stage, gateway: Gateway, __: Random) -> None:
    """The connection is reset when the rows are committed, and the gateway does not know."""
    (await gateway.database.catch(Moment.AFTER_COMMIT)).cut()


@_fault
async def connection_blackholed_in_copy(_: Stage, gateway: Gateway, random: Random) -> None:
    """Nothing passes any more, from the middle of a COPY on, and nobody is told."""
    await _blackhole_at(gateway, Moment.IN_COPY, random)


@_fault
async def connection_blackholed_before_the_answer(
    _: Stage, gateway: Gateway, random: Random
) -> None:
    """Nothing passes any more when the rows are committed, and nobody is told."""
    await _blackhole_at(gateway, Moment.AFTER_COMMIT, random)


@_fault
async def database_full(stage: Stage, _: Gateway, random: Random) -> None:
    """No row can be written for a while, for want of room: SQLSTATE 53100, by a trigger."""
    await stage.execute(_FULL, _FULL_TRIGGER)
    await asyncio.sleep(random.uniform(1, 2))
    await stage.execute("DROP FUNCTION bench_full CASCADE")


@_fault
async def database_read_only(stage: Stage, _: Gateway, random: Random) -> None:
    """No transaction may write for a while."""
    await stage.execute(_READ_ONLY.format("on"), "SELECT pg_reload_conf()")
    await asyncio.sleep(random.uniform(1, 2))
    await stage.execute(_READ_ONLY.format("off"), "SELECT pg_reload_conf()")


@_fault
async def schema_broken(stage: Stage, _: Gateway, random: Random) -> None:
    """The table refuses every row for a while: the fault of none of them."""
    await stage.execute("ALTER TABLE events ADD CONSTRAINT bench_nothing CHECK (false) NOT VALID")
    await asyncio.sleep(random.uniform(1, 2))
    await stage.execute("ALTER TABLE events DROP CONSTRAINT bench_nothing")


@_fault
async def table_locked(stage: Stage, _: Gateway, random: Random) -> None:
    """Somebody holds a lock on the whole table for longer than a commit may take."""
    async with stage.locked_events():
        await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.2, 1))


@_fault
async def new_chunk(_: Stage, __: Gateway, ___: Random) -> None:
    """From now on all events occur on a day without a chunk: everyone needs it at once."""
    await asyncio.sleep(1)  # the author sees to it, see `Author.new_days`


@_fault
async def gateway_frozen_in_new_chunk(_: Stage, gateway: Gateway, __: Random) -> None:
    """The process stands still in the COPY that opens the chunk which all others need."""
    await _freeze_at(gateway, Moment.IN_COPY)


@_fault
async def power_cut(stage: Stage, _: Gateway, random: Random) -> None:
    """Every process is gone at once, and comes back."""
    for gateway in stage.gateways:
        gateway.signal(signal.SIGKILL)
    await asyncio.gather(
        asyncio.to_thread(stage.servers.redis.kill),
        asyncio.to_thread(stage.servers.postgres.kill),
        *(gateway.wait() for gateway in stage.gateways),
    )
    await asyncio.sleep(random.uniform(0, 0.5))
    await asyncio.to_thread(stage.servers.postgres.start)
    await asyncio.to_thread(stage.servers.redis.start)
    await asyncio.gather(*(gateway.start() for gateway in stage.gateways))


# Those that need a day without a chunk.
NEW_DAY = frozenset({new_chunk.__name__, gateway_frozen_in_new_chunk.__name__})


async def _kill_at(gateway: Gateway, moment: Moment) -> None:
    wire = await gateway.database.catch(moment)
    await gateway.kill()
    wire.cut()
    await gateway.start()


async def _freeze_at(gateway: Gateway, moment: Moment) -> None:
    wire = await gateway.database.catch(moment)
    gateway.signal(signal.SIGSTOP)
    await asyncio.sleep(CLAIM_LEASE_S + 1)
    gateway.signal(signal.SIGCONT)
    wire.release()


async def _blackhole_at(gateway: Gateway, moment: Moment, random: Random) -> None:
    await gateway.database.catch(moment)
    gateway.database.blackhole()
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(1, 2))
    gateway.database.restore()
