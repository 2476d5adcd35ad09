"""The costs of an event, measured in half a minute: CPU of each process, bytes kept, bytes sent.

Most costs depend on the number of events in a batch. So they are measured with few and with many
callers, and given as two figures: of an event, and of a batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from statistics import fmean

import msgspec

from app.dev.processes import free_port
from bench import contenders
from bench.performance import footprint
from bench.performance.footprint import Meter
from bench.performance.measure import Bench, PeakRound, Running
from bench.testbed.console import Progress
from bench.testbed.environment import DEFAULT_TIMEOUTS, open_environment
from bench.testbed.gateway import Gateway
from bench.testbed.load import run_wrk
from bench.testbed.machine import Machine, describe_machine
from bench.testbed.process import BenchError
from bench.testbed.threads import in_thread
from bench.testbed.usage import cpu_s

# With one caller a batch is one event; with the last, some hundred.
CALLERS = (1, 8, 64, 256)
CALLERS_ON_METERS = (1, 64)
WARM_UP_S = 2.0
# For figures that hardly vary: bytes, and refusals.
SHORT_S = 2.0
# In the order of the meters in `_Measuring.networks`; requests and answers.
NETWORKS = (
    ("vendor to gateway", "gateway to vendor"),
    ("gateway to database", "database to gateway"),
    ("gateway to Redis", "Redis to gateway"),
)


class Cost(msgspec.Struct, frozen=True):
    """The cost of an event: its own part, and its share of the cost of its batch."""

    per_event: float
    per_batch: float

    def at(self, batch_events: float) -> float:
        """Return the cost of an event in a batch of so many."""
        return self.per_event + self.per_batch / batch_events


class Level(msgspec.Struct, frozen=True):
    """The costs with so many callers in a closed loop."""

    callers: int
    rate: float  # answers a second
    batch_events: float
    commit_ms: float  # of a batch, from its claim to its outcome
    gateway_us: float  # CPU for an event, as the following two
    database_us: float
    redis_us: float
    wal_bytes: float  # for an event


class Sent(msgspec.Struct, frozen=True):
    """Bytes of an event on each network, in both directions, with so many callers."""

    callers: int
    batch_events: float
    sent_bytes: dict[str, float]


class Costs(msgspec.Struct, frozen=True):
    """The costs of an event, in microseconds and bytes."""

    gateway_us: Cost
    database_us: Cost
    redis_us: Cost
    refused_us: float  # CPU of the gateway, with a full buffer
    commit_us: Cost  # time, not CPU: of a batch it is this times its events
    wal_bytes: Cost
    sent_bytes: dict[str, Cost]  # payload: neither TLS nor the heads of TCP and IP
    table_bytes: float
    index_bytes: float
    redis_bytes: float  # for as long as it is remembered
    levels: list[Level] = []
    sent: list[Sent] = []
    machine: Machine | None = None


def load(path: Path) -> Costs:
    """Read the costs of a former run; raises BenchError."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Costs)
    except (OSError, msgspec.MsgspecError) as error:
        raise BenchError(f"{path}: {error}") from None


def fit(points: Sequence[tuple[float, float]]) -> Cost:
    """Return the cost with the best fit to pairs of events in a batch and cost of an event.

    Least squares of the relative errors: by absolute errors a batch of one, whose cost is many
    times higher, would be all that counts. Neither part is negative.
    """
    points = [(1 / batch_events, cost) for batch_events, cost in points if cost > 0]
    if not points:  # below the resolution of the kernel's clock
        return Cost(0.0, 0.0)
    weights = [1 / cost**2 for _, cost in points]

    def mean(of: Callable[[float, float], float]) -> float:
        return fmean([of(share, cost) for share, cost in points], weights)

    share, cost = mean(lambda s, _: s), mean(lambda _, c: c)
    spread = mean(lambda s, _: (s - share) ** 2)
    per_batch = mean(lambda s, c: (s - share) * (c - cost)) / spread if spread else 0.0
    if per_batch < 0:
        return Cost(cost, 0.0)
    if per_batch * share > cost:
        return Cost(0.0, mean(lambda s, c: s * c) / mean(lambda s, _: s * s))
    return Cost(cost - per_batch * share, per_batch)


async def measure(seconds: float, folder: Path | None = None) -> Costs:
    """Measure everything, each level for so many seconds; raises EmbeddedError and BenchError."""
    async with AsyncExitStack() as stack:
        environment = await stack.enter_async_context(open_environment(folder=folder, gateways=0))
        progress = stack.enter_context(Progress(len(CALLERS) + 1 + len(CALLERS_ON_METERS), "steps"))
        measuring = _Measuring(Bench(environment), progress)
        async with measuring.bench.start(contenders.GATEWAY) as running:
            levels = await measuring.levels(running, seconds)
            kept = await measuring.kept()
        refused_us = await measuring.refused_us()
        sent = await measuring.networks()
        return _costs(
            levels, refused_us, sent, kept, describe_machine(environment.servers.description)
        )


class _Measuring:
    def __init__(self, bench: Bench, progress: Progress) -> None:
        self.bench = bench
        self._environment = bench.environment
        self._progress = progress
        self._steps = 0
        self._redis_before = 0

    async def levels(self, running: Running, seconds: float) -> list[Level]:
        self._progress.step("warm-up")
        await self.bench.peak(running, WARM_UP_S)
        await self.bench.clear()
        _, self._redis_before = await self.bench.remembered()
        return [await self._level(running, callers, seconds) for callers in CALLERS]

    async def _level(self, running: Running, callers: int, seconds: float) -> Level:
        self._step(f"CPU and log: {callers} callers")
        async with self._environment.connected() as connection:
            before = await footprint.written(connection, running.process.port)
            round_ = await self.bench.peak(running, seconds, connections=callers)
            now = await footprint.written(connection, running.process.port)
        if round_.problem:
            raise BenchError(f"{callers} callers: {round_.problem}")
        return _level(callers, round_, now.since(before))

    async def kept(self) -> tuple[float, float, float]:
        """Return the stored bytes of an event: in the table, in its indexes, in Redis."""
        rows = await self.bench.rows()
        keys, redis_bytes = await self.bench.remembered()
        async with self._environment.connected() as connection:
            table_bytes, index_bytes = await footprint.sizes(connection)
        return table_bytes / rows, index_bytes / rows, (redis_bytes - self._redis_before) / keys

    async def refused_us(self) -> float:
        """Return the CPU of a refusal: a buffer of one place is full while a lock is held."""
        self._step("CPU of a refusal")
        settings = {"BATCH_MAX_EVENTS": "1", "BUFFER_MAX_EVENTS": "1"}
        gateway, locked = (
            self.bench.start(contenders.GATEWAY, settings),
            self._environment.locked("events"),
        )
        async with gateway as running, locked:
            process = running.process
            before_s = cpu_s(process.pid)
            wrk = await run_wrk(process.port, SHORT_S, folder=self._environment.folder)
            return 1e6 * (cpu_s(process.pid) - before_s) / wrk.requests

    async def networks(self) -> list[Sent]:
        """Measure the bytes of a gateway of its own: the meters would cost another one CPU."""
        servers, port = self._environment.servers, free_port()
        environ = dict(self._environment.environ) | DEFAULT_TIMEOUTS
        log = self._environment.folder / "meters.log"
        meters = [Meter(target) for target in (port, servers.postgres.port, servers.redis.port)]
        async with AsyncExitStack() as stack:
            for meter in meters:
                await meter.open()
                stack.callback(meter.close)
            gateway = Gateway(port, environ, log, databases=[meters[1]], redis=meters[2])
            # In another thread: its last requests pass through the meters of this thread's loop.
            stack.push_async_callback(in_thread, gateway.stop)
            await gateway.start_ready()
            return [await self._sent(callers, gateway, meters) for callers in CALLERS_ON_METERS]

    async def _sent(self, callers: int, gateway: Gateway, meters: Sequence[Meter]) -> Sent:
        self._step(f"bytes sent: {callers} callers")
        async with self._environment.connected() as connection:
            before = await footprint.written(connection, gateway.port)
            bytes_before = [(meter.asked_bytes, meter.answered_bytes) for meter in meters]
            folder = self._environment.folder
            await run_wrk(meters[0].port, SHORT_S, folder=folder, connections=callers)
            counted = (await footprint.written(connection, gateway.port)).since(before)
        sent: dict[str, float] = {}
        for names, meter, old in zip(NETWORKS, meters, bytes_before, strict=True):
            now = (meter.asked_bytes, meter.answered_bytes)
            for name, later, earlier in zip(names, now, old, strict=True):
                sent[name] = (later - earlier) / counted.events
        return Sent(callers, counted.events / counted.batches, sent)

    def _step(self, text: str) -> None:
        self._progress.show(self._steps)
        self._progress.step(text)
        self._steps += 1


def _level(callers: int, round_: PeakRound, counted: footprint.Written) -> Level:
    return Level(
        callers=callers,
        rate=round_.rate,
        batch_events=counted.events / counted.batches,
        commit_ms=1000 * counted.commit_s / counted.batches,
        gateway_us=round_.cost.server_us,
        database_us=round_.cost.database_us,
        redis_us=round_.cost.redis_us,
        wal_bytes=counted.wal_bytes / counted.events,
    )


def _costs(
    levels: list[Level],
    refused_us: float,
    sent: list[Sent],
    kept: tuple[float, float, float],
    machine: Machine,
) -> Costs:
    def of(cost: Callable[[Level], float]) -> Cost:
        return fit([(level.batch_events, cost(level)) for level in levels])

    table_bytes, index_bytes, redis_bytes = kept
    return Costs(
        gateway_us=of(lambda level: level.gateway_us),
        database_us=of(lambda level: level.database_us),
        redis_us=of(lambda level: level.redis_us),
        refused_us=refused_us,
        commit_us=of(lambda level: 1000 * level.commit_ms / level.batch_events),
        wal_bytes=of(lambda level: level.wal_bytes),
        sent_bytes={
            name: fit([(bytes_.batch_events, bytes_.sent_bytes[name]) for bytes_ in sent])
            for names in NETWORKS
            for name in names
        },
        table_bytes=table_bytes,
        index_bytes=index_bytes,
        redis_bytes=redis_bytes,
        levels=levels,
        sent=sent,
        machine=machine,
    )
