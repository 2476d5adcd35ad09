"""The faults of Redis and of the database, and of the whole machine."""

import asyncio
import os
import signal
from random import Random

from bench.faults.fault import Fault, ServerLog
from bench.testbed.environment import COMMIT_TIMEOUT_S, Environment
from bench.testbed.gateway import Gateway
from bench.testbed.threads import in_thread

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
    "CREATE TRIGGER bench_full BEFORE INSERT ON {} FOR EACH ROW EXECUTE FUNCTION bench_full()"
)


async def redis_killed(environment: Environment, _: Gateway, random: Random) -> None:
    """Redis is killed, and is back after a while without its unsaved keys."""
    await in_thread(environment.servers.redis.kill)
    await asyncio.sleep(random.uniform(0.5, 2))
    await in_thread(environment.servers.redis.start)


async def redis_flushed(environment: Environment, _: Gateway, random: Random) -> None:
    """Redis is emptied, a few times."""
    async with environment.redis() as redis:
        for _turn in range(3):
            await redis.flushall()
            await asyncio.sleep(random.uniform(0.1, 0.3))


async def redis_paused(environment: Environment, _: Gateway, random: Random) -> None:
    """Redis does not answer for a while; its connections stay open."""
    environment.servers.redis.pause()
    await asyncio.sleep(random.uniform(1, 3))
    environment.servers.redis.resume()


async def redis_blackholed(_: Environment, gateway: Gateway, random: Random) -> None:
    """The network drops everything between one gateway and Redis."""
    gateway.redis.blackhole()
    await asyncio.sleep(random.uniform(0.5, 2))
    gateway.redis.restore()


async def redis_back_with_old_data(environment: Environment, _: Gateway, random: Random) -> None:
    """Redis is back with an old snapshot: with ended claims, without newer ones."""
    async with environment.redis() as redis:
        await redis.save()
    await asyncio.sleep(random.uniform(0.5, 2))
    await in_thread(environment.servers.redis.kill)
    await in_thread(environment.servers.redis.start)


async def database_stopped(environment: Environment, _: Gateway, random: Random) -> None:
    """PostgreSQL is stopped in `immediate` mode, and recovers from its log."""
    await in_thread(environment.servers.postgres.stop, signal.SIGQUIT)
    await asyncio.sleep(random.uniform(0, 1))
    await in_thread(environment.servers.postgres.start)


async def backend_killed(environment: Environment, _: Gateway, random: Random) -> None:
    """A server process of PostgreSQL is killed, which restarts all of them."""
    async with environment.connected() as connection:
        while not (pids := await connection.fetch(_BACKENDS)):  # noqa: ASYNC110 - polls a view
            await asyncio.sleep(0.01)
    os.kill(random.choice(pids)["pid"], signal.SIGKILL)


async def database_paused(environment: Environment, _: Gateway, random: Random) -> None:
    """PostgreSQL does not answer for longer than COMMIT_TIMEOUT_S."""
    environment.servers.postgres.pause()
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.5, 2))
    environment.servers.postgres.resume()


async def database_full(environment: Environment, _: Gateway, random: Random) -> None:
    """The disk is full for a while: SQLSTATE 53100, by a trigger."""
    log = ServerLog(environment.servers.postgres)
    tables = ("events", "dropped")
    await environment.execute(_FULL, *(_FULL_TRIGGER.format(table) for table in tables))
    await asyncio.sleep(random.uniform(1, 2))
    await log.until(b"No space left on device")
    # The triggers first: CASCADE locks the function before the tables, a writer after them.
    dropped = (f"DROP TRIGGER bench_full ON {table}" for table in tables)
    await environment.execute(*dropped, "DROP FUNCTION bench_full")


async def database_read_only(environment: Environment, _: Gateway, random: Random) -> None:
    """All transactions are read-only for a while."""
    log = ServerLog(environment.servers.postgres)
    await environment.execute(_READ_ONLY.format("on"), "SELECT pg_reload_conf()")
    await asyncio.sleep(random.uniform(1, 2))
    await log.until(b"in a read-only transaction")
    await environment.execute(_READ_ONLY.format("off"), "SELECT pg_reload_conf()")


async def schema_broken(environment: Environment, _: Gateway, random: Random) -> None:
    """The table refuses every row for a while, by a constraint."""
    log = ServerLog(environment.servers.postgres)
    await environment.execute(
        "ALTER TABLE events ADD CONSTRAINT bench_nothing CHECK (false) NOT VALID"
    )
    await asyncio.sleep(random.uniform(1, 2))
    await log.until(b'violates check constraint "bench_nothing"')
    await environment.execute("ALTER TABLE events DROP CONSTRAINT bench_nothing")


async def table_locked(environment: Environment, _: Gateway, random: Random) -> None:
    """A lock on the whole table is held for longer than COMMIT_TIMEOUT_S."""
    async with environment.locked("events"):
        await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.2, 1))


async def new_chunk(_: Environment, __: Gateway, ___: Random) -> None:
    """All further events occur on a day without a chunk: every gateway needs it at once."""
    await asyncio.sleep(1)  # by `EventGenerator.new_days`


async def power_cut(environment: Environment, _: Gateway, random: Random) -> None:
    """Every process is killed at once, and is started again."""
    for gateway in environment.gateways:
        gateway.signal(signal.SIGKILL)
    await asyncio.gather(
        in_thread(environment.servers.redis.kill),
        in_thread(environment.servers.postgres.kill),
        *(asyncio.to_thread(gateway.wait) for gateway in environment.gateways),
    )
    await asyncio.sleep(random.uniform(0, 0.5))
    await in_thread(environment.servers.postgres.start)
    await in_thread(environment.servers.redis.start)
    await asyncio.gather(*(gateway.start_ready() for gateway in environment.gateways))


FAULTS: tuple[Fault, ...] = (
    redis_killed,
    redis_flushed,
    redis_paused,
    redis_blackholed,
    redis_back_with_old_data,
    database_stopped,
    backend_killed,
    database_paused,
    database_full,
    database_read_only,
    schema_broken,
    table_locked,
    new_chunk,
    power_cut,
)
