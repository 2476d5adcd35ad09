"""What may happen, and what became of it: stories for the simulation, and their figures."""

import math
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from bench.capacity.autoscaler import Target
from bench.capacity.manifests import IN_FLIGHT, IN_FLIGHT_CAPPED
from bench.capacity.model import Model
from bench.capacity.simulation import Curve, Moment, Scenario, simulate

SPIKE = 10.0
# What the tight database takes of the usual traffic, and the slow one of its own, which is half a
# spike: enough for more than the least number of replicas.
TIGHT = 3.0
SLOW = 0.2
SLOW_UNTIL_S = 2100


class Story(msgspec.Struct, frozen=True):
    """What became of a scenario; times are seconds since the trouble began."""

    name: str
    usual_rate: float  # offered before
    rate_most: float  # offered
    database_least: float  # events a second
    offered: float
    retried: float
    refused: float
    given_up: float
    written: float
    left: float  # that still wait when the day is over
    waiting_most: float  # in pods
    at_vendor_most: float
    replicas_before: int
    replicas_least: int  # while the trouble lasts, as the next one
    replicas_most: int
    scaled_s: int | None  # the first new pod is ready
    grown_s: int | None  # as many are ready as ever
    recovered_s: int  # from then on nobody is refused, and nobody waits longer than a second
    settled_s: int  # nothing comes back any more
    shrunk_s: int | None  # as many replicas as before; None if not within the hour


def usual_rate(model: Model) -> float:
    """Return a tenth of what the most replicas take without asking for more, in round figures."""
    rate, step = 0.0, 2.0**20
    while step >= 1:
        rate += step if model.meets_targets(rate + step) else 0
        step /= 2
    rate *= model.deployed.autoscaler.replicas_max / SPIKE
    unit = 10.0 ** max(0, math.floor(math.log10(max(1.0, rate))) - 1)
    return max(1.0, rate // unit * unit)


def stories(model: Model, usual: float) -> list[tuple[Model, Scenario]]:
    """Return what is to be simulated.

    A spike; a spike that the database cannot take; a database that is slow while callers wait, so
    that CPU falls. The last one also with the autoscalers that one might have written instead: CPU
    alone, and callbacks in flight as they are, where the deployed one has them capped.
    """
    spike, busy = SPIKE * usual, SPIKE / 2 * usual
    wide, tight = max(model.database_rate(), 2 * spike), TIGHT * usual
    callers = model.deployed.buffer_max * model.pods(busy) / 2  # never too many for the buffers
    slow = Scenario(
        "slow database", Curve(busy, busy), Curve(wide, SLOW * busy, until_s=SLOW_UNTIL_S), callers
    )
    told = [
        (model, Scenario("spike", Curve(usual, spike), Curve(wide, wide))),
        (model, Scenario("spike, tight database", Curve(usual, spike), Curve(tight, tight))),
        (model, slow),
    ]
    targets = model.deployed.autoscaler.targets
    capped = [target for target in targets if target.metric == IN_FLIGHT_CAPPED]
    if capped:
        others = [target for target in targets if target not in capped]
        raw = Target(IN_FLIGHT, capped[0].value)
        told += [
            (_aiming(model, others), slow._replace(name="slow, CPU alone")),
            (_aiming(model, [*others, raw]), slow._replace(name="slow, not capped")),
        ]
    return told


def _aiming(model: Model, targets: Sequence[Target]) -> Model:
    deployed = model.deployed
    autoscaler = replace(deployed.autoscaler, targets=targets)
    return model._replace(deployed=replace(deployed, autoscaler=autoscaler))


def tell(model: Model, scenario: Scenario) -> tuple[Story, list[Moment]]:
    """Simulate a scenario; return what became of it, and every second."""
    moments = list(simulate(model, scenario))
    curves = [scenario.offered, scenario.database]
    began = scenario.offered.from_s
    ended = max(curve.until_s for curve in curves if curve.other != curve.usual)
    before, after = moments[began - 1], moments[began:]
    ready_most = max(moment.ready for moment in after)
    last = moments[-1]

    def since(numbers: Sequence[int]) -> int | None:
        return numbers[0] - began if numbers else None

    troubled = [m.at_s for m in after if m.refused > 0 or m.in_pods > m.arrived]
    unsettled = [m.at_s for m in after if m.at_vendor >= 1 or m.in_pods >= 1]
    grown_at_s = max(after, key=lambda m: m.replicas).at_s  # the first of them
    shrunk = [m.at_s for m in after if m.at_s > grown_at_s and m.replicas <= before.replicas]
    return Story(
        name=scenario.name,
        usual_rate=before.offered,
        rate_most=max(moment.offered for moment in moments),
        database_least=min(scenario.database.at(moment.at_s) for moment in moments),
        offered=sum(moment.offered for moment in moments),
        retried=sum(moment.arrived - moment.offered for moment in moments),
        refused=sum(moment.refused for moment in moments),
        given_up=last.given_up,
        written=sum(moment.written for moment in moments),
        left=last.in_pods + last.at_vendor,
        waiting_most=max(moment.in_pods for moment in moments),
        at_vendor_most=max(moment.at_vendor for moment in moments),
        replicas_before=before.replicas,
        replicas_least=min(moment.replicas for moment in moments[began:ended]),
        replicas_most=max(moment.replicas for moment in moments[began:ended]),
        scaled_s=since([m.at_s for m in after if m.ready > before.ready]),
        grown_s=since([m.at_s for m in after if m.ready == ready_most > before.ready]),
        recovered_s=troubled[-1] + 1 - began if troubled else 0,
        settled_s=unsettled[-1] + 1 - began if unsettled else 0,
        shrunk_s=since(shrunk),
    ), moments
