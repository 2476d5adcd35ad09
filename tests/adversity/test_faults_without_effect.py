"""Faults without an effect: none of them ends well, so that none is counted as survived."""

import asyncio
from pathlib import Path
from random import Random

import pytest

from app.dev.processes import Server
from bench.faults import clock_faults
from bench.faults.clock_faults import gateway_clock_ahead
from bench.faults.fault import Fault
from bench.faults.faults import unavailable
from bench.faults.operator_faults import foreign_trigger, foreign_unique_index
from bench.faults.pooler_faults import pooler_in_between
from bench.faults.recovery_faults import snapshot_put_back
from bench.faults.standby_faults import standby_frozen
from bench.testbed.environment import Environment, open_environment
from bench.testbed.process import BenchError
from bench.topologies.maker import Maker

pytestmark = pytest.mark.services

RANDOM = Random(1)  # noqa: S311 - of the lengths of the faults
# Much longer than each of the faults takes.
OVER_S = 20.0
# Against the gateway of this number.
FAULTS: dict[Fault, int] = {
    foreign_trigger: 0,
    foreign_unique_index: 0,
    pooler_in_between: 0,
    gateway_clock_ahead: 1,
}


async def has_returned(environment: Environment, fault: Fault, gateway: int = 0) -> bool:
    """Whether a fault returns in time."""
    try:
        async with asyncio.timeout(OVER_S):
            await fault(environment, environment.gateways[gateway], RANDOM)
    except TimeoutError:
        return False
    return True


async def test_fault_without_callbacks_does_not_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trigger, an index and a pooler wait for a callback, a wrong clock for the gateway."""
    missing = unavailable()
    faults = {fault: number for fault, number in FAULTS.items() if fault.__name__ not in missing}
    monkeypatch.setattr(clock_faults, "find_libfaketime", lambda: tmp_path / "none.so")
    async with open_environment(folder=tmp_path / "run") as environment:
        returned = await asyncio.gather(
            *(has_returned(environment, fault, number) for fault, number in faults.items())
        )
    assert returned == [False] * len(faults)


def restart(_: Maker, server: Server, __: Path) -> None:
    """Start a killed server on the disk that it has."""
    server.start()


async def test_fault_of_a_pair_without_effect_does_not_end_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frozen standby waits for a commit; a restore that undoes nothing is an error."""
    async with open_environment(
        folder=tmp_path / "run", gateways=1, has_standby=True
    ) as environment:
        assert not await has_returned(environment, standby_frozen)
        environment.pair.standby.resume()
        await environment.pair.until_synchronous()
        monkeypatch.setattr(Maker, "put_back", restart)
        with pytest.raises(BenchError, match="undone nothing"):
            await snapshot_put_back(environment, environment.gateways[0], RANDOM)
