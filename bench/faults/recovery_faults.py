"""Older data is put back under running gateways; the chronicle cuts the ledger at its moment."""

import asyncio
import time
from datetime import UTC, datetime
from random import Random

from app.dev.processes import Server
from bench.faults.fault import Fault
from bench.testbed.chronicle import Cut
from bench.testbed.environment import Environment
from bench.testbed.gateway import Gateway
from bench.testbed.process import BenchError
from bench.testbed.threads import in_thread
from bench.topologies.servers import execute, fetch_value, until_primary

# The last answers of a killed server arrive meanwhile.
_GRACE_S = 1.0
# Undone by the restore. Its commit is in the WAL on disk; that of a transaction that writes nothing
# may be missing there.
_LATER = "CREATE TABLE bench_later ()"
_IS_UNDONE = "SELECT to_regclass('bench_later') IS NULL"
# A standby would inherit them from the primary.
_FORGET = tuple(
    f"ALTER SYSTEM RESET {name}"
    for name in ("restore_command", "recovery_target_time", "recovery_target_action")
)


async def snapshot_put_back(environment: Environment, _: Gateway, random: Random) -> None:
    """The disk of the primary is put back to a snapshot that is some seconds old."""
    pair = environment.pair
    target = time.time()
    snapshot = await in_thread(pair.maker.snapshot, pair.primary)
    await asyncio.sleep(random.uniform(1, 2))
    await execute(pair.primary, _LATER)
    back = await _lose_both(environment)
    await in_thread(pair.maker.put_back, pair.primary, snapshot)
    await _expect_undone(pair.primary)
    environment.chronicle.cuts.append(Cut(target, back))
    await pair.rejoin()


async def recovered_to_a_moment(environment: Environment, _: Gateway, random: Random) -> None:
    """The primary is recovered from a base backup to a moment that is some seconds ago."""
    pair = environment.pair
    backup = await in_thread(pair.maker.base_backup, pair.primary)
    await asyncio.sleep(random.uniform(0.5, 1))
    target = time.time()
    await asyncio.sleep(random.uniform(1, 2))
    await execute(pair.primary, _LATER)  # the recovery ends at a later transaction
    back = await _lose_both(environment)
    moment = datetime.fromtimestamp(target, UTC)
    await in_thread(pair.maker.recover_until, pair.primary, backup, moment)
    await until_primary(pair.primary)
    await _expect_undone(pair.primary)
    environment.chronicle.cuts.append(Cut(target, back))
    await execute(pair.primary, *_FORGET)
    await pair.rejoin()


async def _lose_both(environment: Environment) -> float:
    """Kill both servers, and return a time after the last answer that they gave."""
    # The standby first: nothing is confirmed any more.
    await in_thread(environment.pair.standby.kill)
    await in_thread(environment.pair.primary.kill)
    await asyncio.sleep(_GRACE_S)
    return time.time()


async def _expect_undone(server: Server) -> None:
    if not await fetch_value(server, _IS_UNDONE):
        raise BenchError("the restore has undone nothing")


FAULTS: tuple[Fault, ...] = (snapshot_put_back, recovered_to_a_moment)
