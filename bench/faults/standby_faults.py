"""The faults of a synchronous standby, without which the primary commits nothing."""

import asyncio
import re
from random import Random

from bench.faults.fault import Fault
from bench.testbed.environment import COMMIT_TIMEOUT_S, Environment
from bench.testbed.gateway import Gateway
from bench.testbed.proxy import Proxy
from bench.testbed.threads import in_thread
from bench.topologies.servers import ALONE, execute, fetch_value, until_waiting

_FOLLOW = "ALTER SYSTEM SET primary_conninfo = '{}'"
_RELOAD = "SELECT pg_reload_conf()"


async def standby_killed(environment: Environment, _: Gateway, random: Random) -> None:
    """The standby is killed, and is back after COMMIT_TIMEOUT_S: no commit is confirmed before."""
    pair = environment.pair
    await in_thread(pair.standby.kill)
    await until_waiting(pair.primary)
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.2, 1))
    await in_thread(pair.standby.start)
    await pair.until_synchronous()


async def standby_frozen(environment: Environment, _: Gateway, random: Random) -> None:
    """The standby does not answer for longer than COMMIT_TIMEOUT_S; its connection stays open."""
    pair = environment.pair
    pair.standby.pause()
    await until_waiting(pair.primary)
    await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.2, 1))
    pair.standby.resume()
    await pair.until_synchronous()


async def standby_cut_off(environment: Environment, _: Gateway, random: Random) -> None:
    """The network drops everything between the primary and the standby."""
    pair = environment.pair
    proxy = Proxy(pair.primary.port)
    await proxy.open()
    direct: str = await fetch_value(pair.standby, "SHOW primary_conninfo")
    behind = re.sub(r"port=\d+", f"port={proxy.port}", direct)
    try:
        await execute(pair.standby, _quoted(behind), _RELOAD)
        await pair.until_synchronous()
        proxy.blackhole()
        await until_waiting(pair.primary)
        await asyncio.sleep(COMMIT_TIMEOUT_S + random.uniform(0.2, 1))
    finally:
        proxy.close()
    await execute(pair.standby, _quoted(direct), _RELOAD)
    await pair.until_synchronous()


async def standby_given_up(environment: Environment, _: Gateway, random: Random) -> None:
    """The standby is lost, the primary is set to go on alone, and later gets a standby again."""
    pair = environment.pair
    await in_thread(pair.standby.kill)
    await until_waiting(pair.primary)
    await asyncio.sleep(random.uniform(0.2, 1))
    await execute(pair.primary, *ALONE)
    await asyncio.sleep(random.uniform(0.5, 1.5))
    await in_thread(pair.standby.start)
    await pair.wait_for_standby()


async def primary_killed_without_standby(
    environment: Environment, _: Gateway, random: Random
) -> None:
    """The primary crashes while commits wait for a frozen standby, and recovers from its log."""
    pair = environment.pair
    pair.standby.pause()
    await until_waiting(pair.primary)
    await asyncio.sleep(random.uniform(0.2, COMMIT_TIMEOUT_S))
    await in_thread(pair.primary.kill)
    await in_thread(pair.primary.start)
    await asyncio.sleep(random.uniform(0.2, 1))
    pair.standby.resume()
    await pair.until_synchronous()


async def both_servers_killed(environment: Environment, _: Gateway, random: Random) -> None:
    """Both servers are killed at once; the primary is back first."""
    pair = environment.pair
    await asyncio.gather(*(in_thread(server.kill) for server in (pair.standby, pair.primary)))
    await in_thread(pair.primary.start)
    await asyncio.sleep(random.uniform(0, 1))
    await in_thread(pair.standby.start)
    await pair.until_synchronous()


def _quoted(conninfo: str) -> str:
    return _FOLLOW.format(conninfo.replace("'", "''"))


FAULTS: tuple[Fault, ...] = (
    standby_killed,
    standby_frozen,
    standby_cut_off,
    standby_given_up,
    primary_killed_without_standby,
    both_servers_killed,
)
