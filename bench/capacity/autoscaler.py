"""The HorizontalPodAutoscaler, as Kubernetes documents it.

Source: kubernetes.io, "Horizontal Pod Autoscaling", sections "Algorithm details" and "Configurable
scaling behavior". Where that page leaves room (which moment of a window counts, how policies of
both directions add up), it is done as in Kubernetes' own `pkg/controller/podautoscaler`.
"""

import math
from collections.abc import Mapping, Sequence
from enum import StrEnum
from statistics import fmean
from typing import NamedTuple

import msgspec

CPU = "cpu"
TOLERANCE = 0.1
# No window and no period may be longer.
MEMORY_S = 3600.0


class Kind(StrEnum):
    """What the value of a policy counts."""

    PODS = "Pods"
    PERCENT = "Percent"


class Select(StrEnum):
    """Which of several policies holds."""

    MAX = "Max"  # the one that allows most
    MIN = "Min"
    DISABLED = "Disabled"


class Policy(msgspec.Struct, frozen=True):
    """How much may change within so many seconds."""

    kind: Kind
    value: int
    period_s: int


class Rules(msgspec.Struct, frozen=True):
    """The behaviour in one direction."""

    window_s: int
    policies: Sequence[Policy]
    select: Select = Select.MAX
    tolerance: float = TOLERANCE


# What holds where a manifest says nothing.
UP = Rules(0, (Policy(Kind.PERCENT, 100, 15), Policy(Kind.PODS, 4, 15)))
DOWN = Rules(300, (Policy(Kind.PERCENT, 100, 15),))


class Target(msgspec.Struct, frozen=True):
    """What a pod is to have of a metric, on average; CPU in cores."""

    metric: str
    value: float


class Spec(msgspec.Struct, frozen=True):
    """What a manifest asks for."""

    replicas_min: int
    replicas_max: int
    targets: Sequence[Target]
    up: Rules = UP
    down: Rules = DOWN


class Seen(NamedTuple):
    """A pod as the autoscaler sees it; those that are being ended are not shown to it."""

    values: Mapping[str, float]  # of its metrics; one that is missing is unknown
    is_pending: bool = False  # no container of it runs yet
    is_unready: bool = False  # not ready yet, or its CPU is from before it was


class Autoscaler:
    """Decides on a number of replicas, again and again; remembers what it has decided."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self._recommended: list[tuple[float, int]] = []  # when, how many
        self._changed: list[tuple[float, int]] = []  # when, by how many

    def decide(self, now_s: float, pods: Sequence[Seen], current: int) -> int:
        """Return how many replicas there shall be from now on; called once a sync period."""
        for past in (self._recommended, self._changed):
            past[:] = [(at_s, number) for at_s, number in past if at_s > now_s - MEMORY_S]
        least, most = self.spec.replicas_min, self.spec.replicas_max
        if not least <= current <= most:
            return self._remember(now_s, current, min(max(current, least), most))
        proposals = [propose(self.spec, target, pods, current) for target in self.spec.targets]
        known = [proposal for proposal in proposals if proposal is not None]
        # Who cannot see everything may scale out, but not in.
        if not known or (len(known) < len(proposals) and max(known) < current):
            return current
        stable = self._stabilize(now_s, max(known), current)
        return self._remember(now_s, current, self._limit(now_s, stable, current))

    def _stabilize(self, now_s: float, desired: int, current: int) -> int:
        """Return the number nearest to the current one that was wanted for a whole window."""

        def window(rules: Rules) -> list[int]:
            return [n for at_s, n in self._recommended if at_s > now_s - rules.window_s] + [desired]

        at_least, at_most = min(window(self.spec.up)), max(window(self.spec.down))
        self._recommended.append((now_s, desired))
        return min(max(current, at_least), at_most)

    def _limit(self, now_s: float, desired: int, current: int) -> int:
        if desired > current:
            limit = max(current, self._allowed(now_s, self.spec.up, current, 1))
            return min(desired, limit, self.spec.replicas_max)
        if desired < current:
            limit = min(current, self._allowed(now_s, self.spec.down, current, -1))
            return max(desired, limit, self.spec.replicas_min)
        return desired

    def _allowed(self, now_s: float, rules: Rules, current: int, sign: int) -> int:
        """Return how far the policies let us go in one direction."""
        if rules.select is Select.DISABLED:
            return current
        allowed = []
        for policy in rules.policies:
            began_with = current - sum(
                change for at_s, change in self._changed if at_s > now_s - policy.period_s
            )
            if policy.kind is Kind.PODS:
                allowed.append(began_with + sign * policy.value)
            else:
                # Rounded so that something may change: away from what the period began with.
                change = -(-began_with * policy.value // 100)
                allowed.append(began_with + sign * change)
        is_farthest = (rules.select is Select.MAX) == (sign > 0)
        return max(allowed) if is_farthest else min(allowed)

    def _remember(self, now_s: float, current: int, decided: int) -> int:
        if decided != current:
            self._changed.append((now_s, decided - current))
        return decided


def propose(spec: Spec, target: Target, pods: Sequence[Seen], current: int) -> int | None:
    """Return how many replicas one metric asks for; None where no pod that counts has it."""
    running = [pod for pod in pods if not pod.is_pending]
    have = [pod for pod in running if target.metric in pod.values]
    missing = len(running) - len(have)
    ready = [pod for pod in have if not (target.metric == CPU and pod.is_unready)]
    aside = len(pods) - len(ready) - missing
    values = [pod.values[target.metric] for pod in ready]
    if not values:
        return None
    ratio = fmean(values) / target.value
    if ratio > 1:
        # What a pod that is new will take over is not known: it may be enough.
        values += [0.0] * (missing + aside)
    else:
        values += [target.value] * missing  # the page's "100% of the desired value"
    new_ratio = fmean(values) / target.value
    is_turned = (new_ratio > 1) is not (ratio > 1)
    if is_turned or 1 - spec.down.tolerance <= new_ratio <= 1 + spec.up.tolerance:
        return current
    replicas = math.ceil(new_ratio * len(values))
    # The pods that are counted may be others than those that are wanted.
    return max(replicas, current) if new_ratio > 1 else min(replicas, current)
