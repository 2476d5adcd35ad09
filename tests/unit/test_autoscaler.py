"""The autoscaler's algorithm, by examples that were reckoned by hand from Kubernetes' own page."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.capacity.autoscaler import (
    CPU,
    DOWN,
    UP,
    Autoscaler,
    Kind,
    Policy,
    Rules,
    Seen,
    Select,
    Spec,
    Target,
    propose,
)
from bench.capacity.manifests import IN_FLIGHT, IN_FLIGHT_CAPPED, MANIFESTS, quantity, read
from bench.testbed.gateway import BenchError

LOAD = "load"
AT_ONCE = Rules(0, (Policy(Kind.PERCENT, 1000, 15),))


def spec(
    *, least: int = 1, most: int = 100, up: Rules = AT_ONCE, down: Rules = DOWN, both: bool = False
) -> Spec:
    """An autoscaler that wants 100 of some metric in each pod; perhaps of two."""
    targets = [Target(LOAD, 100), Target(CPU, 100)]
    return Spec(least, most, targets if both else targets[:1], up, down)


def pods(*values: float, metric: str = LOAD) -> list[Seen]:
    """Pods that have so much of a metric."""
    return [Seen({metric: value}) for value in values]


def proposed(seen: Sequence[Seen], current: int, metric: str = LOAD) -> int | None:
    """What one metric asks for."""
    return propose(spec(), Target(metric, 100), seen, current)


def decisions(autoscaler: Autoscaler, loads: Sequence[float], current: int) -> list[int]:
    """The replicas after each of some sync periods, each with its total load."""
    made = []
    for number, load in enumerate(loads):
        current = autoscaler.decide(15.0 * number, pods(*[load / current] * current), current)
        made.append(current)
    return made


@pytest.mark.parametrize(
    ("value", "current", "desired"),
    [
        (200, 3, 6),  # "if the current metric value is 200m, and the desired value is 100m"
        (50, 4, 2),
        (50, 5, 3),  # rounded up
        (110, 10, 10),  # within the tolerance
        (111, 10, 12),
        (90, 10, 10),
        (89, 10, 9),
    ],
)
def test_ratio(value: float, current: int, desired: int) -> None:
    """As many replicas as the ratio of the average to the target, rounded up, beyond a tenth."""
    assert proposed(pods(*[value] * current), current) == desired


def test_missing_metrics() -> None:
    """A pod without the metric has none of it where the others ask for more, and enough else."""
    assert proposed([*pods(200, 200, 200), Seen({})], 4) == 6  # (600 + 0) / 4 = 1.5
    assert proposed([*pods(50, 50, 50), Seen({})], 4) == 3  # (150 + 100) / 4 = 0.625
    assert proposed([Seen({}), Seen({})], 2) is None


def test_pods_that_are_not_ready() -> None:
    """Their CPU is taken for nothing where the others ask for more, and not counted else."""
    new = Seen({CPU: 900, LOAD: 900}, is_unready=True)
    assert proposed([*pods(200, 200, 200, metric=CPU), new], 4, CPU) == 6
    assert proposed([*pods(50, 50, 50, metric=CPU), new], 4, CPU) == 2  # 0.5 of those three
    assert proposed([*pods(200, 200, 200), new], 4) == 15  # of another metric it counts: 1500 / 100
    assert proposed([*pods(200), Seen({LOAD: 0}, is_pending=True)], 2) == 2


def test_a_direction_is_never_turned() -> None:
    """Where the new pods may be enough, nothing is done."""
    pending = [Seen({}, is_pending=True)] * 2
    assert proposed([*pods(120, 120), *pending], 4) == 4  # 240 / 4 = 0.6
    assert proposed([*pods(210, 210), *pending], 4) == 4  # 420 / 4 = 1.05: within the tolerance
    assert proposed([*pods(300, 300), *pending], 4) == 6


def test_several_metrics() -> None:
    """The one that asks for most wins; while one is not to be had, nothing is scaled in."""
    autoscaler = Autoscaler(spec(both=True, down=AT_ONCE))
    assert autoscaler.decide(0, [Seen({LOAD: 50, CPU: 300})], 1) == 3
    assert autoscaler.decide(15, pods(10, 10, 10), 3) == 3
    assert autoscaler.decide(30, pods(200, 200, 200), 3) == 6
    assert autoscaler.decide(45, [Seen({})] * 6, 6) == 6
    assert autoscaler.decide(60, [Seen({LOAD: 10, CPU: 50})] * 6, 6) == 3


def test_limits() -> None:
    """Never more and never fewer than the manifest says, whoever has changed the number."""
    autoscaler = Autoscaler(spec(least=2, most=5, down=AT_ONCE))
    assert decisions(autoscaler, [10_000, 1], 3) == [5, 2]
    assert autoscaler.decide(100, pods(100), 1) == 2
    assert autoscaler.decide(115, pods(*[100] * 9), 9) == 5


def test_policies_as_documented() -> None:
    """The page's example: 10 % or 4 pods in a minute, whichever is more, from 80 down to 10."""
    slowly = Rules(0, (Policy(Kind.PODS, 4, 60), Policy(Kind.PERCENT, 10, 60)))
    autoscaler, current, made = Autoscaler(spec(down=slowly)), 80, []
    for minute in range(10):
        seen = pods(*[1000 / current] * current)
        current = autoscaler.decide(60.0 * minute, seen, current)
        made.append(current)
        # In the rest of the minute nothing more.
        seen = pods(*[1000 / current] * current)
        assert autoscaler.decide(60.0 * minute + 45, seen, current) == current
    assert made == [72, 64, 57, 51, 45, 40, 36, 32, 28, 24]


def test_policies_when_nothing_is_said() -> None:
    """Out: doubled or four more in 15 s. In: all at once, after five minutes."""
    assert decisions(Autoscaler(spec(up=UP)), [10_000] * 6, 1) == [5, 10, 20, 40, 80, 100]
    loads = [1000, *[100] * 20]
    assert decisions(Autoscaler(spec(up=UP)), loads, 10) == [10] * 20 + [1]


@pytest.mark.parametrize(
    ("select", "replicas"), [(Select.MAX, 20), (Select.MIN, 14), (Select.DISABLED, 10)]
)
def test_selected_policy(select: Select, replicas: int) -> None:
    """The policy that allows most, or least; or none at all."""
    policies = (Policy(Kind.PODS, 4, 15), Policy(Kind.PERCENT, 100, 15))
    autoscaler = Autoscaler(spec(up=Rules(0, policies, select)))
    assert decisions(autoscaler, [100_000], 10) == [replicas]
    down = (Policy(Kind.PODS, 4, 15), Policy(Kind.PERCENT, 100, 15))
    autoscaler = Autoscaler(spec(down=Rules(0, down, select)))
    assert decisions(autoscaler, [0], 10) == [{20: 1, 14: 6, 10: 10}[replicas]]


def test_stabilization_windows() -> None:
    """In: the most of the window. Out: the least of it."""
    patient = Rules(30, AT_ONCE.policies)
    # 1,000 is asked for at 15 s; at 45 s it is forgotten, and 400 is what is left.
    loads = [400, 1000, 400, 400, 400]
    down = Autoscaler(spec(down=patient))
    assert decisions(down, loads, 4) == [4, 10, 10, 4, 4]
    # Only at 60 s there is nothing but 1,000 in the window.
    up = Autoscaler(spec(up=patient))
    assert decisions(up, [400, 400, 1000, 1000, 1000], 4) == [4, 4, 4, 10, 10]


def test_tolerance_of_a_direction() -> None:
    """Each direction may have its own."""
    strict = spec(up=Rules(0, AT_ONCE.policies, tolerance=0.01))
    assert propose(strict, Target(LOAD, 100), pods(*[105] * 10), 10) == 11
    assert propose(strict, Target(LOAD, 100), pods(*[95] * 10), 10) == 10


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=30),
    st.integers(1, 30),
    st.integers(1, 10),
    st.integers(10, 40),
)
def test_whatever_the_load(loads: list[float], current: int, least: int, most: int) -> None:
    """The number stays within its limits, and more load never asks for fewer."""
    autoscaler = Autoscaler(spec(least=least, most=most, up=UP))
    made = decisions(autoscaler, loads, current)
    assert all(least <= replicas <= most for replicas in made)
    asked = [proposed(pods(*[load / current] * current), current) for load in sorted(loads)]
    assert asked == sorted(asked, key=lambda replicas: replicas or 0)


MANIFEST = """
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: gateway}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: gateway}
  minReplicas: 2
  maxReplicas: 40
  metrics:
    - type: Resource
      resource: {name: cpu, target: {type: Utilization, averageUtilization: 60}}
    - type: Pods
      pods:
        metric: {name: flokit_callbacks_in_flight_capped}
        target: {type: AverageValue, averageValue: 200}
  behavior:
    scaleDown:
      stabilizationWindowSeconds: 600
      policies: [{type: Percent, value: 10, periodSeconds: 60}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: gateway}
spec:
  template:
    spec:
      containers:
        - {name: gateway, resources: {requests: {cpu: 500m}, limits: {cpu: "2"}}}
---
kind: Kustomization
configMapGenerator:
  - {name: settings, literals: [BUFFER_MAX_EVENTS=3000]}
"""


def test_manifests(tmp_path: Path) -> None:
    """Targets, limits and policies come from the manifests, what they leave out from Kubernetes."""
    (tmp_path / "all.yaml").write_text(MANIFEST)
    deployed = read(tmp_path)
    assert deployed.autoscaler == Spec(
        2,
        40,
        [Target(CPU, 0.3), Target(IN_FLIGHT_CAPPED, 200)],
        UP,
        Rules(600, [Policy(Kind.PERCENT, 10, 60)]),
    )
    assert (deployed.cores, deployed.buffer_max, deployed.batch_max) == (1, 3000, 500)
    assert (deployed.surge, deployed.with_surge(10)) == ("25%", 13)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kind: Deployment\nmetadata", "kind: StatefulSet\nmetadata"),
        ("flokit_callbacks_in_flight_capped", "flokit_nonsense"),
        ("cpu: 500m", "cpu: half"),
        ("name: cpu,", "name: memory,"),
        ("type: Percent", "type: Some"),
        ("maxReplicas: 40", "maxReplica: 40"),
    ],
)
def test_manifests_that_are_not_understood(tmp_path: Path, old: str, new: str) -> None:
    """What would be simulated wrongly is refused."""
    assert old in MANIFEST
    (tmp_path / "all.yaml").write_text(MANIFEST.replace(old, new))
    with pytest.raises(BenchError):
        read(tmp_path)


@pytest.mark.skipif(not MANIFESTS.exists(), reason="there are no manifests yet")
def test_manifests_of_ours() -> None:
    """Those in the repository can be simulated: CPU asks for more pods, and nothing else does."""
    targets = {target.metric for target in read(MANIFESTS).autoscaler.targets}
    assert CPU in targets
    assert IN_FLIGHT not in targets


@pytest.mark.parametrize(
    ("text", "number"), [("500m", 0.5), ("2", 2), (2, 2), ("1.5", 1.5), ("1k", 1000)]
)
def test_quantity(text: object, number: float) -> None:
    """Kubernetes' way to write numbers."""
    assert quantity(text) == number
