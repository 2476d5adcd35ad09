"""The needs of a rate of callbacks: arithmetic on the measured costs."""

import math
from collections.abc import Iterator
from itertools import count
from typing import Annotated, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta

from app.settings import Settings
from bench.capacity.costs import Costs
from bench.capacity.manifests import Deployed
from bench.testbed.process import BenchError

RATES = (1_000, 10_000, 100_000, 1_000_000)
WINDOWS_D = {"30 days": 30.0, "1 day": 1.0, "1 hour": 1 / 24}
BATCH_MAX_EVENTS = Settings().batch_max_events
# The claim, and two for a COPY: its rows follow the server's answer to the statement.
ROUND_TRIPS = 3
# In a roll-out all old pods may still drain beside the new ones, each connection may linger beside
# its successor, and the operators' commands run.
CONNECTIONS_OF_A_POD = 3
LINGERING = 2
CONNECTIONS_OF_OPERATORS = 4
DAY_S = 86_400
HOUR_S = 3_600
PODS_MAX = 100_000


class Assumptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The numbers that are not measured; each can be set on the command line."""

    round_trip_ms: Annotated[
        float, Meta(ge=0, description="from a pod to the database or Redis and back, in one zone")
    ] = 0.5
    database_cores: Annotated[float, Meta(gt=0, description="of one database server")] = 32
    database_use: Annotated[
        float, Meta(gt=0, le=1, description="share of them for writing; readers have the rest")
    ] = 0.5
    database_wal_mb_s: Annotated[
        float, Meta(gt=0, description="WAL that a server and its synchronous standby keep up with")
    ] = 200
    database_connections: Annotated[
        int, Meta(gt=0, description="of a server for gateways: max_connections, less others")
    ] = 400
    database_disk_tb: Annotated[
        float, Meta(gt=0, description="of a server for rows, indexes and WAL")
    ] = 30
    kept_d: Annotated[
        float, Meta(gt=0, description="days that events are kept; RETENTION_D is at least 62")
    ] = 62
    columnstore_factor: Annotated[
        float, Meta(ge=1, description="by which TimescaleDB's columnstore shrinks rows; 1: none")
    ] = 1
    columnstore_after_d: Annotated[
        float, Meta(ge=0, description="days after which it takes them over")
    ] = 7
    wal_kept_h: Annotated[
        float, Meta(ge=0, description="of WAL on the disk, for a standby or archive that lags")
    ] = 1
    redis_gb: Annotated[float, Meta(gt=0, description="used memory of one Redis")] = 25
    redis_use: Annotated[float, Meta(gt=0, le=1, description="share of a Redis's one core")] = 0.5

    def cells(
        self, cores: float, wal_bytes: float, connections: int, disk_bytes: float
    ) -> dict[str, int]:
        """Return the number of database servers for each resource; the scarcest decides."""
        return {
            "CPU": math.ceil(cores / (self.database_cores * self.database_use)),
            "WAL": math.ceil(wal_bytes / 1e6 / self.database_wal_mb_s),
            "connections": math.ceil(connections / self.database_connections),
            "disk": math.ceil(disk_bytes / 1e12 / self.database_disk_tb),
        }

    def stored_d(self, days: float) -> float:
        """Return the days of rows whose disk the rows of so many days take."""
        as_rows = min(days, self.columnstore_after_d)
        return as_rows + (days - as_rows) / self.columnstore_factor

    def full_after_d(self, stored_d: float) -> float:
        """Return the days after which rows take the disk of so many days: of `stored_d` undone."""
        as_rows = min(stored_d, self.columnstore_after_d)
        return as_rows + (stored_d - as_rows) * self.columnstore_factor

    def redises(self, cores: float, size_bytes: float) -> int:
        """Return the number of Redis servers."""
        by_memory = math.ceil(size_bytes / 1e9 / self.redis_gb)
        return max(by_memory, math.ceil(cores / self.redis_use))


def described(assumed: Assumptions) -> Iterator[tuple[str, str, str]]:
    """Yield the name, the value and the meaning of every assumption."""
    values = msgspec.structs.asdict(assumed)
    for name, hint in get_type_hints(Assumptions, include_extras=True).items():
        yield name, f"{values[name]:g}", hint.__metadata__[0].description


class Batch(msgspec.Struct, frozen=True):
    """The events of one commit at some rate of one pod, and the duration of the commit."""

    events: float
    commit_s: float


class Need(msgspec.Struct, frozen=True):
    """The needs of one rate. Figures per second are those of all pods together."""

    rate: float
    pods: int
    pods_surged: int
    is_beyond_max: bool  # more pods than the autoscaler may start
    batch: Batch
    copies: float
    connections: int
    database_cores: float
    wal_bytes: float
    cells: int  # a database, Redis and gateways each
    cells_by: dict[str, int]
    cell_pods: int  # of each cell
    redis_cores: float
    redis_bytes: dict[str, float]  # by the window in which events are remembered
    redises: dict[str, int]
    disk_day_bytes: float
    disk_bytes: float  # of all kept events, and WAL
    disk_full_d: float  # days until the disk of a single server is full
    sent_bytes: dict[str, float]


class Model(NamedTuple):
    """The costs, the manifests, and the assumptions."""

    costs: Costs
    deployed: Deployed
    assumed: Assumptions

    def batch(self, rate: float) -> Batch:
        """Return the batch of a pod with so many callbacks a second.

        While one batch is committed the next one gathers: its size is the number of events that
        arrive in that time, which grows with the events. At least one, at most BATCH_MAX_EVENTS.
        """
        event_s = self.costs.commit_us.per_event / 1e6
        fixed_s = (
            self.costs.commit_us.per_batch / 1e6 + ROUND_TRIPS * self.assumed.round_trip_ms / 1000
        )
        left = 1 - rate * event_s
        events = rate * fixed_s / left if left > 0 else math.inf
        events = min(max(1.0, events), BATCH_MAX_EVENTS)
        return Batch(events, fixed_s + events * event_s)

    def pod_cores(self, rate: float) -> float:
        """Return the CPU of a pod with so many callbacks a second."""
        return rate * self.costs.gateway_us.at(self.batch(rate).events) / 1e6

    def pods(self, rate: float) -> int:
        """Return the number of pods at which the autoscaler settles; raises BenchError."""
        for pods in count(self.deployed.replicas_min):
            if self.pod_cores(rate / pods) <= self.deployed.cores_target:
                return pods
            if pods == PODS_MAX:
                raise BenchError("no number of pods meets the autoscaler's target")
        raise AssertionError

    def need(self, rate: float) -> Need:
        """Return the needs of so many callbacks a second, day and night, all of them new events."""
        costs, assumed = self.costs, self.assumed
        pods = self.pods(rate)
        surged = self.deployed.with_surge(pods)
        batch = self.batch(rate / pods)
        connections = CONNECTIONS_OF_OPERATORS + LINGERING * CONNECTIONS_OF_A_POD * (pods + surged)
        database_cores = rate * costs.database_us.at(batch.events) / 1e6
        wal_bytes = rate * costs.wal_bytes.at(batch.events)
        disk_day_bytes = rate * DAY_S * (costs.table_bytes + costs.index_bytes)
        wal_kept_bytes = wal_bytes * HOUR_S * assumed.wal_kept_h
        disk_bytes = disk_day_bytes * assumed.stored_d(assumed.kept_d) + wal_kept_bytes
        room_bytes = max(0.0, 1e12 * assumed.database_disk_tb - wal_kept_bytes)
        cells_by = assumed.cells(database_cores, wal_bytes, connections, disk_bytes)
        cells = max(cells_by.values())
        redis_cores = rate * costs.redis_us.at(batch.events) / 1e6
        redis_bytes = {
            name: rate * days * DAY_S * costs.redis_bytes for name, days in WINDOWS_D.items()
        }
        return Need(
            rate=rate,
            pods=pods,
            pods_surged=surged,
            is_beyond_max=pods > self.deployed.replicas_max,
            batch=batch,
            copies=rate / batch.events,
            connections=connections,
            database_cores=database_cores,
            wal_bytes=wal_bytes,
            cells=cells,
            cells_by=cells_by,
            cell_pods=self.pods(rate / cells),
            redis_cores=redis_cores,
            redis_bytes=redis_bytes,
            redises={n: assumed.redises(redis_cores, size) for n, size in redis_bytes.items()},
            disk_day_bytes=disk_day_bytes,
            disk_bytes=disk_bytes,
            disk_full_d=assumed.full_after_d(room_bytes / disk_day_bytes),
            sent_bytes={n: rate * cost.at(batch.events) for n, cost in costs.sent_bytes.items()},
        )
