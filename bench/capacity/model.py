"""How much of everything a rate of callbacks needs: arithmetic on the measured costs."""

import math
from collections.abc import Iterator
from itertools import count
from typing import Annotated, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta

from bench.capacity.autoscaler import CPU
from bench.capacity.costs import Costs
from bench.capacity.manifests import IN_FLIGHT, IN_FLIGHT_CAPPED, Deployed
from bench.testbed.gateway import BenchError

RATES = (1_000, 10_000, 100_000, 1_000_000)
WINDOWS_D = {"30 days": 30.0, "1 day": 1.0, "1 hour": 1 / 24}
# Two to the database for each batch and two to Redis's one answer: the claim; the COPY, whose
# rows go when the server has agreed to take some.
ROUND_TRIPS = 3
# In the midst of a roll-out all old pods may still drain beside the new ones, each connection may
# linger beside its successor, and the operators' commands run.
CONNECTIONS_OF_A_POD = 2
LINGERING = 2
CONNECTIONS_OF_OPERATORS = 4
DAY_S = 86_400
HOUR_S = 3_600
PODS_MAX = 100_000
_HALVINGS = 50


class Assumptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was not measured; every one can be set on the command line."""

    round_trip_ms: Annotated[
        float, Meta(ge=0, description="from a pod to the database or Redis and back, in one zone")
    ] = 0.5
    database_cores: Annotated[float, Meta(gt=0, description="of one database server")] = 32
    database_use: Annotated[
        float, Meta(gt=0, le=1, description="share of them for writing; readers have the rest")
    ] = 0.5
    database_wal_mb_s: Annotated[
        float, Meta(gt=0, description="log that a server and its synchronous standby keep up with")
    ] = 200
    database_connections: Annotated[
        int, Meta(gt=0, description="that a server has for gateways: max_connections, less others")
    ] = 400
    database_disk_tb: Annotated[
        float, Meta(gt=0, description="that a server has for rows, indexes and WAL")
    ] = 30
    kept_d: Annotated[
        float, Meta(gt=0, description="days that events are kept; RETENTION_D is at least 62")
    ] = 62
    wal_kept_h: Annotated[
        float, Meta(ge=0, description="of WAL on the disk, for a standby or archive that is behind")
    ] = 1
    redis_gb: Annotated[float, Meta(gt=0, description="filled memory of one Redis")] = 25
    redis_use: Annotated[float, Meta(gt=0, le=1, description="share of a Redis's one core")] = 0.5
    sync_s: Annotated[
        int, Meta(gt=0, description="how often the autoscaler decides: Kubernetes' default")
    ] = 15
    scrape_s: Annotated[
        int, Meta(gt=0, description="how often metrics are taken: metrics-server's default")
    ] = 15
    metrics_lag_s: Annotated[
        int, Meta(ge=0, description="from then until the autoscaler can see them")
    ] = 5
    pending_s: Annotated[
        int, Meta(ge=0, description="until a new pod's container runs: node and image are there")
    ] = 5
    start_s: Annotated[int, Meta(ge=0, description="from then until it is ready")] = 10
    patience_s: Annotated[
        float, Meta(gt=0, description="how long the vendor waits for an answer; not published")
    ] = 10
    pod_connections: Annotated[
        int, Meta(gt=0, description="callers that a pod can have waiting: a limit of the gateway's")
    ] = 10_000
    retries_s: Annotated[
        tuple[int, ...],
        Meta(description="waits before retries; published is only: up to six in 24 hours"),
    ] = (60, 240, 960, 3840, 15360, 61440)

    def databases(self, cores: float, wal_bytes: float, connections: int, disk_bytes: float) -> int:
        """Return how many servers it takes for so much: whatever is short first."""
        return max(
            math.ceil(cores / (self.database_cores * self.database_use)),
            math.ceil(wal_bytes / 1e6 / self.database_wal_mb_s),
            math.ceil(connections / self.database_connections),
            math.ceil(disk_bytes / 1e12 / self.database_disk_tb),
        )

    def redises(self, cores: float, size_bytes: float) -> int:
        """Return how many of them it takes for so much."""
        by_memory = math.ceil(size_bytes / 1e9 / self.redis_gb)
        return max(by_memory, math.ceil(cores / self.redis_use))


def described(assumed: Assumptions) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the value and the meaning of every assumption."""
    for name, hint in get_type_hints(Assumptions, include_extras=True).items():
        value = getattr(assumed, name)
        text = ", ".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"
        yield name, text, hint.__metadata__[0].description


class Batch(msgspec.Struct, frozen=True):
    """What is committed at a time, at some rate of one pod."""

    events: float
    commit_s: float


class Need(msgspec.Struct, frozen=True):
    """What one rate needs. Rates are per second, of all pods together."""

    rate: float
    pods: int
    pods_surged: int
    is_beyond_most: bool  # more pods than the autoscaler may start
    pod_cores: float
    pod_in_flight: float
    batch: Batch
    copies: float
    connections: int
    database_cores: float
    wal_bytes: float
    databases: int
    redis_cores: float
    redis_bytes: dict[str, float]  # by the window in which events are remembered
    redises: dict[str, int]
    disk_day_bytes: float
    disk_bytes: float  # of all that is kept, and WAL
    disk_full_d: float  # days until one server's disk is full, if it has to take all of it
    sent_bytes: dict[str, float]


class Model(NamedTuple):
    """The costs, what is deployed, and what is assumed."""

    costs: Costs
    deployed: Deployed
    assumed: Assumptions

    def batch(self, rate: float) -> Batch:
        """Return what a pod commits at a time that has so many callbacks a second.

        While one batch is committed the next one gathers: it has as many events as come in that
        time, which grows with the events. At least one, and at most what a batch may hold.
        """
        event_s = self.costs.commit_us.per_event / 1e6
        fixed_s = (
            self.costs.commit_us.per_batch / 1e6 + ROUND_TRIPS * self.assumed.round_trip_ms / 1000
        )
        left = 1 - rate * event_s if rate < math.inf else 0
        events = rate * fixed_s / left if left > 0 else math.inf
        events = min(max(1.0, events), self.deployed.batch_max)
        return Batch(events, fixed_s + events * event_s)

    def pod_cores(self, rate: float, refused: float = 0.0) -> float:
        """Return the CPU that a pod needs for so many callbacks a second, and so many refused."""
        taken_us = rate * self.costs.gateway_us.at(self.batch(rate).events)
        return (taken_us + refused * self.costs.refused_us) / 1e6

    def pod_in_flight(self, rate: float) -> float:
        """Return how many callbacks wait in a pod: for the rest of one commit, and their own."""
        batch = self.batch(rate)
        share_busy = min(1.0, rate / batch.events * batch.commit_s)
        return rate * batch.commit_s * (1 + share_busy / 2)

    def lane_rate(self) -> float:
        """Return how many events a second one pod commits at most, one full batch at a time."""
        batch = self.batch(math.inf)
        return batch.events / batch.commit_s

    def reading_rate(self) -> float:
        """Return how many callbacks a second keep a pod's CPU busy."""
        least, most = 0.0, 1e6 * self.deployed.cores / self.costs.gateway_us.per_event
        for _ in range(_HALVINGS):
            middle = (least + most) / 2
            fits = self.pod_cores(middle) <= self.deployed.cores
            least, most = (middle, most) if fits else (least, middle)
        return least

    def database_rate(self) -> float:
        """Return how many events a second one database is taken to write, in full batches."""
        cores = self.assumed.database_cores * self.assumed.database_use
        events = self.deployed.batch_max
        return min(
            1e6 * cores / self.costs.database_us.at(events),
            1e6 * self.assumed.database_wal_mb_s / self.costs.wal_bytes.at(events),
        )

    def meets_targets(self, rate: float) -> bool:
        """Whether no metric asks for more pods, if each has so many callbacks a second."""
        has = {CPU: self.pod_cores(rate), IN_FLIGHT: self.pod_in_flight(rate)}
        return all(
            has.get(target.metric, 0.0) <= target.value
            for target in self.deployed.autoscaler.targets
        )

    def in_flight_cap(self) -> float:
        """Return the most that the capped metric tells: its own target."""
        targets = self.deployed.autoscaler.targets
        return next((t.value for t in targets if t.metric == IN_FLIGHT_CAPPED), math.inf)

    def pods(self, rate: float) -> int:
        """Return how many pods the autoscaler ends up with; raises BenchError without an end."""
        for pods in count(self.deployed.autoscaler.replicas_min):
            if self.meets_targets(rate / pods):
                return pods
            if pods == PODS_MAX:
                raise BenchError("no number of pods meets the autoscaler's targets")
        raise AssertionError

    def need(self, rate: float) -> Need:
        """Return what so many callbacks a second need, day and night, all of them new events."""
        costs, assumed = self.costs, self.assumed
        pods = self.pods(rate)
        surged = self.deployed.with_surge(pods)
        batch = self.batch(rate / pods)
        connections = CONNECTIONS_OF_OPERATORS + LINGERING * CONNECTIONS_OF_A_POD * (pods + surged)
        database_cores = rate * costs.database_us.at(batch.events) / 1e6
        wal_bytes = rate * costs.wal_bytes.at(batch.events)
        disk_day_bytes = rate * DAY_S * (costs.table_bytes + costs.index_bytes)
        wal_kept_bytes = wal_bytes * HOUR_S * assumed.wal_kept_h
        disk_bytes = disk_day_bytes * assumed.kept_d + wal_kept_bytes
        room_bytes = max(0.0, 1e12 * assumed.database_disk_tb - wal_kept_bytes)
        redis_cores = rate * costs.redis_us.at(batch.events) / 1e6
        redis_bytes = {
            name: rate * days * DAY_S * costs.redis_bytes for name, days in WINDOWS_D.items()
        }
        return Need(
            rate=rate,
            pods=pods,
            pods_surged=surged,
            is_beyond_most=pods > self.deployed.autoscaler.replicas_max,
            pod_cores=self.pod_cores(rate / pods),
            pod_in_flight=self.pod_in_flight(rate / pods),
            batch=batch,
            copies=rate / batch.events,
            connections=connections,
            database_cores=database_cores,
            wal_bytes=wal_bytes,
            databases=assumed.databases(database_cores, wal_bytes, connections, disk_bytes),
            redis_cores=redis_cores,
            redis_bytes=redis_bytes,
            redises={n: assumed.redises(redis_cores, size) for n, size in redis_bytes.items()},
            disk_day_bytes=disk_day_bytes,
            disk_bytes=disk_bytes,
            disk_full_d=room_bytes / disk_day_bytes,
            sent_bytes={n: rate * cost.at(batch.events) for n, cost in costs.sent_bytes.items()},
        )
