"""The faults: each is injected under load, and returns when its cause is gone."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from random import Random

from bench.testbed.environment import CLAIM_LEASE_S, COMMIT_TIMEOUT_S, Environment
from bench.testbed.gateway import Gateway
from bench.testbed.process import BenchError
from bench.testbed.proxy import Moment

Fault = Callable[[Environment, Gateway, Random], Awaitable[None]]
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
async def gateway_killed_between_claim_and_commit(
    _: Environment, gateway: Gateway, __: Random
) -> None:
    """The process is killed after the claim of its events, before its first row."""
    await _kill_at(gateway, Moment.BEFORE_COPY)


@_fault
async def gateway_killed_in_copy(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is killed when half of its rows are on the server."""
    await _kill_at(gateway, Moment.IN_COPY)


@_fault
async def gateway_killed_before_commit(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is killed when its rows are written and not committed."""
    await _kill_at(gateway, Moment.BEFORE_COMMIT)


@_fault
async def gateway_killed_between_commit_and_answer(
    _: Environment, gateway: Gateway, __: Random
) -> None:
    """The process is killed when its rows are committed, before any answer."""
    await _kill_at(gateway, Moment.AFTER_COMMIT)


@_fault
async def gateway_killed_at_random(_: Environment, gateway: Gateway, random: Random) -> None:
    """The process is killed at a random moment."""
    await asyncio.sleep(random.uniform(0, 0.5))
    await asyncio.to_thread(gateway.kill)
    await gateway.start_ready()


@_fault
async def gateway_frozen_in_copy(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is stopped in the middle of a COPY until its claims have ended, and resumed."""
    await _freeze_at(gateway, Moment.IN_COPY)


@_fault
async def gateway_frozen_before_commit(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is stopped when its rows are written: it holds the locks of contested events."""
    await _freeze_at(gateway, Moment.BEFORE_COMMIT)


@_fault
async def gateway_terminated(_: Environment, gateway: Gateway, __: Random) -> None:
    """SIGTERM under load."""
    gateway.signal(signal.SIGTERM)
    exit_code = await asyncio.to_thread(gateway.wait)
    if exit_code:
        raise BenchError(f"exit code {exit_code} after SIGTERM, see {gateway.log}")
    await gateway.start_ready()


@_fault
async def redis_killed(environment: Environment, _: Gateway, random: Random) -> None:
    """Redis is killed, and is back after a while without its unsaved keys."""
    await asyncio.to_thread(environment.servers.redis.kill)
    await asyncio.sleep(random.uniform(0.5, 2))
    await asyncio.to_thread(environment.servers.redis.start)


@_fault
async def redis_flushed(environment: Environment, _: Gateway, random: Random) -> None:
    """Redis is emptied, a few times."""
    async with environment.redis() as redis:
        for _turn in range(3):
            await redis.flushall()
            await asyncio.sleep(random.uniform(0.1, 0.3))


@_fault
async def redis_paused(environment: Environment, _: Gateway, random: Random) -> None:
    """Redis does not answer for a while; its connections stay open."""
    environment.servers.redis.pause()
    await asyncio.sleep(random.uniform(1, 3))
    environment.servers.redis.resume()


@_fault
async def redis_blackholed(_: Environment, gateway: Gateway, random: Random) -> None:
    """The network drops everything between one gateway and Redis."""
    gateway.redis.blackhole()
    await asyncio.sleep(random.uniform(0.5, 2))
    gateway.redis.restore()


@_fault
async def redis_back_with_old_data(environment: Environment, _: Gateway, random: Random) -> None:
    """Redis is back with an old snapshot: with ended claims, without newer ones."""
    async with environment.redis() as redis:
        await redis.save()
    await asyncio.sleep(random.uniform(0.5, 2))
    await asyncio.to_thread(environment.servers.redis.kill)
    await asyncio.to_thread(environment.servers.redis.start)


@_fault
async def database_stopped(environment: Environment, _: Gateway, random: Random) -> None:
    """PostgreSQL is stopped in `immediate` mode, and recovers from its log."""
    await asyncio.to_thread(environment.servers.postgres.stop, signal.SIGQUIT)
    await asyncio.sleep(random.uniform(0, 1))
    await asyncio.to_thread(environment.servers.postgres.start)


@_fault
async def backend_killed(environment: Environment, _: Gateway, random: Random) -> None:
    """A server process of PostgreSQL is killed, which restarts all of them."""
    async with environment.connected() as connection:
        while not (pids := await connection.fetch(_BACKENDS)):  # noqa: ASYNC110 - polls a view
            await asyncio.sleep(0.01)
    os.kill(random.choice(pids)["pid"], signal.SIGKILL)


@_fault
async def database_paused(environment: Environment, _: Gateway, random: Random) -> None:
    """PostgreSQL does not answer for longer than COMMIT_TIMEOUT_S."""
    environment.servers.postgres.pause()
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.5, 2))
    environment.servers.postgres.resume()


@_fault
async def connection_cut_in_copy(_: Environment, gateway: Gateway, __: Random) -> None:
    """The connection is reset when half of the rows are on the server."""
    (await gateway.database.catch(Moment.IN_COPY)).cut()


@_fault
async def connection_cut_before_the_answer(_: Environment, gateway: Gateway, __: Random) -> None:
    """The connection is reset when the rows are committed, before the server's answer arrives."""
    (await gateway.database.catch(Moment.AFTER_COMMIT)).cut()


@_fault
async def connection_blackholed_in_copy(_: Environment, gateway: Gateway, random: Random) -> None:
    """The network drops everything from the middle of a COPY on."""
    await _blackhole_at(gateway, Moment.IN_COPY, random)


@_fault
async def connection_blackholed_before_the_answer(
    _: Environment, gateway: Gateway, random: Random
) -> None:
    """The network drops everything from the commit of the rows on."""
    await _blackhole_at(gateway, Moment.AFTER_COMMIT, random)


@_fault
async def database_full(environment: Environment, _: Gateway, random: Random) -> None:
    """The disk is full for a while: SQLSTATE 53100, by a trigger."""
    await environment.execute(_FULL, _FULL_TRIGGER)
    await asyncio.sleep(random.uniform(1, 2))
    await environment.execute("DROP FUNCTION bench_full CASCADE")


@_fault
async def database_read_only(environment: Environment, _: Gateway, random: Random) -> None:
    """All transactions are read-only for a while."""
    await environment.execute(_READ_ONLY.format("on"), "SELECT pg_reload_conf()")
    await asyncio.sleep(random.uniform(1, 2))
    await environment.execute(_READ_ONLY.format("off"), "SELECT pg_reload_conf()")


@_fault
async def schema_broken(environment: Environment, _: Gateway, random: Random) -> None:
    """The table refuses every row for a while, by a constraint."""
    await environment.execute(
        "ALTER TABLE events ADD CONSTRAINT bench_nothing CHECK (false) NOT VALID"
    )
    await asyncio.sleep(random.uniform(1, 2))
    await environment.execute("ALTER TABLE events DROP CONSTRAINT bench_nothing")


@_fault
async def table_locked(environment: Environment, _: Gateway, random: Random) -> None:
    """A lock on the whole table is held for longer than COMMIT_TIMEOUT_S."""
    async with environment.locked_events():
        await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.2, 1))


@_fault
async def new_chunk(_: Environment, __: Gateway, ___: Random) -> None:
    """All further events occur on a day without a chunk: every gateway needs it at once."""
    await asyncio.sleep(1)  # by `EventGenerator.new_days`


@_fault
async def gateway_frozen_in_new_chunk(_: Environment, gateway: Gateway, __: Random) -> None:
    """The process is stopped in the COPY that creates the chunk of all new events."""
    await _freeze_at(gateway, Moment.IN_COPY)


@_fault
async def power_cut(environment: Environment, _: Gateway, random: Random) -> None:
    """Every process is killed at once, and is started again."""
    for gateway in environment.gateways:
        gateway.signal(signal.SIGKILL)
    await asyncio.gather(
        asyncio.to_thread(environment.servers.redis.kill),
        asyncio.to_thread(environment.servers.postgres.kill),
        *(asyncio.to_thread(gateway.wait) for gateway in environment.gateways),
    )
    await asyncio.sleep(random.uniform(0, 0.5))
    await asyncio.to_thread(environment.servers.postgres.start)
    await asyncio.to_thread(environment.servers.redis.start)
    await asyncio.gather(*(gateway.start_ready() for gateway in environment.gateways))


# The faults that need a day without a chunk.
NEW_DAY = frozenset({new_chunk.__name__, gateway_frozen_in_new_chunk.__name__})


async def _kill_at(gateway: Gateway, moment: Moment) -> None:
    connection = await gateway.database.catch(moment)
    await asyncio.to_thread(gateway.kill)
    connection.cut()
    await gateway.start_ready()


async def _freeze_at(gateway: Gateway, moment: Moment) -> None:
    connection = await gateway.database.catch(moment)
    gateway.signal(signal.SIGSTOP)
    await asyncio.sleep(CLAIM_LEASE_S + 1)
    gateway.signal(signal.SIGCONT)
    connection.release()


async def _blackhole_at(gateway: Gateway, moment: Moment, random: Random) -> None:
    await gateway.database.catch(moment)
    gateway.database.blackhole()
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(1, 2))
    gateway.database.restore()
