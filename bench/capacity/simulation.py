"""Traffic, pods, a database and a vendor who tries again, second by second, under the autoscaler.

Callbacks are a fluid: a second's worth of them is divided evenly among the pods that are ready.
In each pod they wait for its CPU first (the kernel keeps them; no metric sees them), then in the
buffer for the database. Whoever finds the buffer full is refused; who would wait for the CPU longer
than the vendor's patience, or finds no connection, goes away. Both come again.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.capacity.autoscaler import CPU, Autoscaler, Seen
from bench.capacity.manifests import IN_FLIGHT, IN_FLIGHT_CAPPED
from bench.capacity.model import Model

# What Kubernetes knows of a new pod's CPU is not believed for so long, if it is from before it was
# ready (--horizontal-pod-autoscaler-cpu-initialization-period).
YOUNG_S = 300
HORIZON_S = 3600
# How far the capped metric looks back.
LOOK_BACK_S = 60
# All six retries are over by then.
DAY_S = 86_400
# Less is rounding.
NOTHING = 1e-6


class Curve(NamedTuple):
    """A rate that is another one for a while; its edges are straight."""

    usual: float
    other: float
    from_s: int = 300
    until_s: int = 900
    edge_s: int = 10

    def at(self, now_s: float) -> float:
        """Return the rate of a moment."""
        begun = min(1.0, max(0.0, (now_s - self.from_s) / self.edge_s))
        ended = min(1.0, max(0.0, (now_s - self.until_s) / self.edge_s))
        return self.usual + (self.other - self.usual) * (begun - ended)


class Scenario(NamedTuple):
    """What happens: callbacks that are offered, and events that the database takes, a second.

    A vendor with so many callers keeps back what is offered while all of them wait for answers.
    """

    name: str
    offered: Curve
    database: Curve
    callers: float = math.inf


class Moment(NamedTuple):
    """What one second was like."""

    at_s: int
    offered: float  # for the first time
    arrived: float  # with retries
    written: float
    refused: float  # answered 503, or gone away
    in_pods: float  # read or not
    at_vendor: float  # refused, to come again; or kept back
    given_up: float  # after the last retry
    replicas: int  # wanted
    ready: int
    cores: float  # used by a ready pod, on average
    in_flight: float  # of a ready pod, on average


class Vendor:
    """Sends what is new and what is due again; remembers which retry each is."""

    def __init__(self, retries_s: Sequence[int]) -> None:
        self._retries_s = retries_s
        self._kept_back = 0.0
        self._refused = 0.0
        self._due: dict[int, list[float]] = {}
        self._mixture = [1.0] + [0.0] * len(retries_s)

    @property
    def has(self) -> float:
        """How many callbacks will come, without those that nobody has offered yet."""
        return self._refused + self._kept_back

    def send(self, now_s: int, offered: float, most: float) -> float:
        """Return how many callbacks arrive now: all that could, or as many as there are callers."""
        parts = self._due.pop(now_s, [0.0] * (len(self._retries_s) + 1))
        self._refused -= sum(parts)
        # What was kept back counts as new, whatever it was.
        parts[0] += offered + self._kept_back
        total = sum(parts)
        if total > 0:
            self._mixture = [part / total for part in parts]
        self._kept_back = max(0.0, total - most)
        return total - self._kept_back

    def hear(self, now_s: int, refused: float) -> float:
        """Learn how many were refused, of each retry its share; returns who gives up."""
        for number, wait_s in enumerate(self._retries_s):
            due = self._due.setdefault(now_s + wait_s, [0.0] * len(self._mixture))
            due[number + 1] += refused * self._mixture[number]
        given_up = refused * self._mixture[-1]
        self._refused += refused - given_up
        return given_up


class Pod:
    """What waits in a pod, what it does, and what is known of it."""

    def __init__(self, model: Model, pending_until_s: int, ready_s: int) -> None:
        self.ready_s = ready_s
        self.unread = 0.0
        self.buffered = 0.0
        self.cores = 0.0
        self.in_flight = 0.0
        self._model = model
        self._pending_until_s = pending_until_s
        self._cpu_s = 0.0
        self._samples: list[tuple[int, dict[str, float]]] = []

    @property
    def has(self) -> float:
        """How many callbacks wait here."""
        return self.unread + self.buffered

    def serve(self, written: float, reading_rate: float) -> float:
        """Let a second pass in which so many of its callbacks are written; return who is refused.

        What finds room in the buffer is taken, as long as there is CPU, and more is turned away.
        """
        model = self._model
        room = max(0.0, model.deployed.buffer_max - self.buffered + written)
        taken = min(self.unread, reading_rate, room)
        spare_us = max(0.0, 1e6 * (model.deployed.cores - model.pod_cores(taken)))
        turned_away = min(self.unread - taken, spare_us / max(1e-3, model.costs.refused_us))
        left = self.unread - taken - turned_away
        self.buffered += taken - written
        places = max(0.0, model.assumed.pod_connections - self.buffered)
        self.unread = min(left, model.assumed.patience_s * reading_rate, places)
        self.cores = model.pod_cores(taken, turned_away)
        self._cpu_s += self.cores
        in_flight = self.buffered + model.pod_in_flight(written)
        self.in_flight = min(in_flight, model.deployed.buffer_max)
        return turned_away + left - self.unread

    def sample(self, now_s: int) -> None:
        """Take its metrics; CPU is the average since the last time."""
        assumed = self._model.assumed
        if now_s >= self._pending_until_s:
            values = {IN_FLIGHT: self.in_flight}
            if now_s - assumed.scrape_s >= self._pending_until_s:
                values[CPU] = self._cpu_s / assumed.scrape_s
            kept_s = now_s - LOOK_BACK_S - assumed.metrics_lag_s
            self._samples = [*(old for old in self._samples if old[0] > kept_s), (now_s, values)]
        self._cpu_s = 0.0

    def seen(self, now_s: int) -> Seen:
        """Return what the autoscaler sees of it."""
        assumed = self._model.assumed
        known = [sample for sample in self._samples if sample[0] <= now_s - assumed.metrics_lag_s]
        at_s, values = known[-1] if known else (now_s, {})
        if known:
            most = max(old[IN_FLIGHT] for taken_s, old in known if taken_s > at_s - LOOK_BACK_S)
            values = values | {IN_FLIGHT_CAPPED: min(most, self._model.in_flight_cap())}
        is_young = now_s < self._pending_until_s + YOUNG_S
        is_stale = is_young and at_s < self.ready_s + assumed.scrape_s
        return Seen(values, now_s < self._pending_until_s, now_s < self.ready_s or is_stale)


class World:
    """All of it; `step` makes a second pass."""

    def __init__(self, model: Model, scenario: Scenario) -> None:
        self.vendor = Vendor(model.assumed.retries_s)
        self.given_up = 0.0
        self._model = model
        self._scenario = scenario
        self._autoscaler = Autoscaler(model.deployed.autoscaler)
        spec = model.deployed.autoscaler
        replicas = min(model.pods(scenario.offered.usual), spec.replicas_max)
        self._pods = [Pod(model, -DAY_S, -DAY_S) for _ in range(replicas)]
        self._leaving: list[Pod] = []
        self._reading_rate = model.reading_rate()
        self._lane_rate = model.lane_rate()

    def step(self, now_s: int) -> Moment:
        """Let one second pass, and tell what it was like."""
        everyone = [*self._pods, *self._leaving]
        ready = [pod for pod in self._pods if pod.ready_s <= now_s]
        offered = self._scenario.offered.at(now_s)
        database = self._scenario.database.at(now_s)
        free = max(0.0, self._scenario.callers - sum(pod.has for pod in everyone))
        answered = min(database, min(self._lane_rate, self._reading_rate) * len(ready))
        arrived = self.vendor.send(now_s, offered, free + answered)
        for pod in ready:  # there is one: those of the beginning leave last
            pod.unread += arrived / len(ready)
        written, refused = self._serve(everyone, database)
        self.given_up += self.vendor.hear(now_s, refused)
        moment = Moment(
            now_s,
            offered,
            arrived,
            written,
            refused,
            sum(pod.has for pod in everyone),
            self.vendor.has,
            self.given_up,
            len(self._pods),
            len(ready),
            sum(pod.cores for pod in ready) / len(ready),
            sum(pod.in_flight for pod in ready) / len(ready),
        )
        self._leaving = [pod for pod in self._leaving if pod.has > NOTHING]
        self._scale(now_s + 1)
        return moment

    def _serve(self, pods: Sequence[Pod], database_rate: float) -> tuple[float, float]:
        """Return how much is written and how much is refused."""
        wanted = [
            min(pod.buffered + min(pod.unread, self._reading_rate), self._lane_rate) for pod in pods
        ]
        shares = fair_shares(database_rate, wanted)
        refused = [
            pod.serve(share, self._reading_rate) for pod, share in zip(pods, shares, strict=True)
        ]
        return sum(shares), sum(refused)

    def _scale(self, now_s: int) -> None:
        assumed = self._model.assumed
        if now_s % assumed.scrape_s == 0:
            for pod in self._pods:
                pod.sample(now_s)
        if now_s % assumed.sync_s:
            return
        seen = [pod.seen(now_s) for pod in self._pods]
        replicas = self._autoscaler.decide(now_s, seen, len(self._pods))
        # The youngest go first; they finish what they have.
        self._leaving += self._pods[replicas:]
        del self._pods[replicas:]
        running_s = now_s + assumed.pending_s
        while len(self._pods) < replicas:
            self._pods.append(Pod(self._model, running_s, running_s + assumed.start_s))


def fair_shares(total: float, wanted: Sequence[float]) -> list[float]:
    """Divide a total: nobody gets more than wanted, and who gets less gets as much as anyone."""
    shares = [0.0] * len(wanted)
    waiting = sorted(range(len(wanted)), key=wanted.__getitem__)
    for place, number in enumerate(waiting):
        shares[number] = min(wanted[number], total / (len(waiting) - place))
        total -= shares[number]
    return shares


def simulate(model: Model, scenario: Scenario) -> Iterator[Moment]:
    """Yield every second, for an hour, and on until nothing waits or a day is over."""
    world = World(model, scenario)
    for now_s in range(DAY_S):
        moment = world.step(now_s)
        yield moment
        if now_s >= HORIZON_S and moment.at_vendor + moment.in_pods < 1:
            return
