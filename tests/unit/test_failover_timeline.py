"""The seconds of a failover add up to the gap between two `written`."""

import pytest
import yaml

from bench.failover.environment import Route
from bench.failover.run import LOCK_S, WRITTEN_WITHIN_S, Fault, Result
from bench.failover.timeline import Failover, Moment
from bench.faults.verdict import Verdict
from bench.testbed.ledger import Ledger
from bench.topologies.node import DOCUMENTED
from tests.unit.test_documents import MACHINE

BEGAN = 100.0
WRITTEN = [99.0, 100.5, 107.0, 107.25, 109.5, 110.0]
MOMENTS = {
    Moment.REQUESTED: 104.5,
    Moment.PROMOTED: 105.0,
    Moment.ROUTED: 106.0,
    Moment.CONNECTED: 105.5,
    Moment.STANDBY: 106.5,
}


def failover(**moments: float) -> Failover:
    """A failover with these moments, which every gateway has survived."""
    made = Failover("machine lost", BEGAN, every_gateway_at=108.0, whole_at=109.75)
    for moment, at in MOMENTS.items():
        made.note(moment, moments.get(moment.name, at))
    return made


def test_seconds_add_up_to_the_gap() -> None:
    """Each moment has the seconds that it adds; one that came early adds none."""
    made = failover()
    made.complete(WRITTEN)
    assert made.seconds() == {
        Moment.REQUESTED: 4.0,
        Moment.PROMOTED: 0.5,
        Moment.ROUTED: 1.0,
        Moment.CONNECTED: 0.0,
        Moment.STANDBY: 0.5,
        Moment.WRITTEN: 0.5,
    }
    assert sum(made.seconds().values()) == made.gap_s == 6.5


def test_first_occurrence_of_a_moment_counts() -> None:
    """A server that is seen as the primary again was promoted before."""
    made = failover()
    made.note(Moment.PROMOTED, 200.0)
    assert made.moments[Moment.PROMOTED] == 105.0


def test_promotion_that_is_seen_late_hides_no_written() -> None:
    """The promotion is seen by polling, and may be seen after the first `written`."""
    made = failover(PROMOTED=107.1)
    made.complete(WRITTEN)
    assert made.stopped_at == 100.5
    assert made.gap_s == 6.5


@pytest.mark.parametrize("late", [110.25, 120.0])
def test_pause_after_the_first_written_counts(late: float) -> None:
    """A gateway that stops again has a longer gap than the promotion."""
    made = failover()
    made.whole_at = late
    made.complete([*WRITTEN[:4], late])
    assert made.gap_s == max(6.5, late - 107.25)


def result(fault: Fault, *, gap_s: float, slowest_s: float) -> Result:
    """A clean run of two failovers, the second of them with these seconds."""
    quick = Failover("switch-over", 0.0, every_gateway_at=2.0, stopped_at=1.0, gap_s=1.0)
    other = Failover(
        fault.value, BEGAN, every_gateway_at=BEGAN + slowest_s, stopped_at=BEGAN, gap_s=gap_s
    )
    return Result(MACHINE, Route.HOSTS, Ledger(), Verdict(), 1.0, failovers=[quick, other])


@pytest.mark.parametrize("fault", Fault)
def test_every_failover_has_a_bound(fault: Fault) -> None:
    """The gap and the slowest gateway are judged, at the machine without a fence too."""
    max_s = WRITTEN_WITHIN_S[fault]
    assert not result(fault, gap_s=max_s - 1, slowest_s=max_s - 1).late
    [late] = result(fault, gap_s=max_s, slowest_s=max_s - 1).late
    assert late.startswith(f"failover 2: {fault.value}: longest gap {max_s:.2f} s")


@pytest.mark.parametrize("fault", Fault)
def test_gateway_that_stays_down_is_late(fault: Fault) -> None:
    """One gateway writes at once, and the slowest of them decides."""
    [late] = result(fault, gap_s=3.0, slowest_s=50.0).late
    assert late.startswith(f"failover 2: {fault.value}: each gateway writes 50.00 s")


def test_lock_lasts_as_documented() -> None:
    """The bound of a machine without a fence has the documented `ttl`."""
    documented = yaml.safe_load(DOCUMENTED.read_text())
    assert documented["bootstrap"]["dcs"]["ttl"] == LOCK_S
