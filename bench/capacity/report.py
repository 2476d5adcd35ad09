"""What `capacity` tells: tables of what was measured, computed and assumed, JSON, and a picture."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from bench.capacity import plots
from bench.capacity.autoscaler import Spec
from bench.capacity.costs import Cost, Costs
from bench.capacity.manifests import Deployed
from bench.capacity.model import (
    CONNECTIONS_OF_A_POD,
    DAY_S,
    WINDOWS_D,
    Assumptions,
    Need,
    described,
)
from bench.capacity.scenarios import Story
from bench.capacity.simulation import Moment
from bench.testbed.machine import Machine
from bench.testbed.report import markdown_table, print_table

Row = tuple[object, ...]
MEASURED, COMPUTED = "measured", "computed"
# Of a batch as large as one with a few dozen callers.
USUAL_BATCH = 32


class Report(msgspec.Struct, frozen=True):
    """One run. `costs` may be those of another machine."""

    began: datetime
    machine: Machine
    costs: Costs
    assumed: Assumptions
    deployed: Deployed
    needs: list[Need]
    stories: list[Story]


def print_report(report: Report) -> None:
    """Print every table."""
    for title, headings, rows in _tables(report):
        print(f"\n{title}\n")
        print_table(headings, rows)
    print(*notes(report), sep="\n")


def write(report: Report, runs: Mapping[str, Sequence[Moment]], folder: Path) -> Path:
    """Write everything into a folder of the run's own, and return the report's path."""
    folder = folder / f"capacity-{report.began:%Y-%m-%dT%H%M%S}Z"
    folder.mkdir(parents=True)
    for name, what in (("results", report), ("costs", report.costs)):
        (folder / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(what)))
    hours = {name: plots.hour(moments) for name, moments in runs.items()}
    (folder / "moments.json").write_bytes(msgspec.json.encode(hours))
    plots.draw(runs, report.deployed, folder / "autoscaler.svg")
    path = folder / "report.md"
    path.write_text(_markdown(report))
    return path


def _markdown(report: Report) -> str:
    lines = [
        "# Capacity",
        "",
        f"- {report.began:%Y-%m-%d %H:%M} UTC, commit `{report.machine.commit}`",
        "- the costs may be used again: `--costs costs.json`",
    ]
    if (where := report.costs.machine) is not None:
        lines += [
            f"- costs measured on {where.processor}, {where.cores} cores, {where.memory_mb:,} MB,",
            f"  {where.kernel}, Python {where.python}; {where.servers}; commit `{where.commit}`",
        ]
    lines.append("")
    for title, headings, rows in _tables(report):
        lines += [f"## {title}", "", markdown_table(headings, rows)]
    lines += [f"- {note}" for note in notes(report)]
    return "\n".join([*lines, "", "![the autoscaler, simulated](autoscaler.svg)", ""])


def notes(report: Report) -> Iterator[str]:
    """Yield in words what in the tables goes beyond a limit."""
    most = report.deployed.autoscaler.replicas_max
    for need in report.needs:
        if need.is_beyond_most:
            yield f"{need.rate:,.0f}/s: {need.pods} pods; the autoscaler may start {most}."
        if need.databases > 1:
            yield (
                f"{need.rate:,.0f}/s is too much for one PostgreSQL, whose disk would be full after"
                f" {need.disk_full_d:,.1f} days: {need.databases} of them, each for some of the"
                " apps, with gateways, Redis and a host name of its own."
            )
    longest, shortest = (list(WINDOWS_D)[place] for place in (0, -1))
    yield (
        f"To remember events for {longest} in Redis takes {report.needs[0].redises[longest]} to "
        f"{report.needs[-1].redises[longest]:,} of them; {shortest} weakens no promise: the "
        "database recognises what Redis has forgotten, at the price of a failed COPY."
    )


def _tables(report: Report) -> Iterator[tuple[str, Sequence[str], Iterable[Row]]]:
    costs = report.costs
    yield (
        "Costs",
        ("cost", "of an event", "and of a batch", f"an event in a batch of {USUAL_BATCH}", "how"),
        _cost_rows(costs),
    )
    if costs.levels:
        yield "Costs by the size of the batch", _LEVELS, map(_level_row, costs.levels)
    rates = [f"{need.rate:,.0f}/s" for need in report.needs]
    yield "Needs", ("new events", *rates, "how"), _need_rows(report)
    yield "Assumptions", ("assumed", "value", "meaning"), [*described(report.assumed), *_GRANTED]
    names = [story.name for story in report.stories]
    yield "Autoscaler, simulated", ("figure", *names), _story_rows(report.stories)


_GRANTED = (
    ("callbacks", "new events", "duplicates and drops cost less; the rate lasts day and night"),
    ("cost of an event", "as measured", "whatever the number of pods: many writers were not tried"),
    (
        "time of a commit",
        "as measured",
        "on one machine for callers and servers; and 3 round trips",
    ),
    ("rows on the disk", "as measured", "without the compression of Timescale's own edition"),
    ("Redis", "not a cluster", "there a batch is several scripts, by slot"),
    ("load balancer", "even", "each ready pod has the same; one that ends finishes what it has"),
    ("callers of the slow database", "as many as buffers hold", "so that nobody is refused"),
    ("retries", "on the second", "who was refused together comes back together"),
)
_LEVELS = (
    "callers", "answers/s", "events in a batch", "commit, ms", "gateway, µs", "database, µs",
    "Redis, µs", "WAL, bytes",
)  # fmt: skip


def _level_row(level: Any) -> Row:
    return (
        level.callers,
        round(level.rate),
        *(
            f"{number:.1f}"
            for number in (
                level.batch_events,
                level.commit_ms,
                level.gateway_us,
                level.database_us,
                level.redis_us,
                level.wal_bytes,
            )
        ),
    )


def _cost_rows(costs: Costs) -> Iterator[Row]:
    def row(name: str, cost: Cost, how: str) -> Row:
        figures = (cost.per_event, cost.per_batch, cost.at(USUAL_BATCH))
        return (name, *(f"{figure:,.1f}" for figure in figures), how)

    cpu = f"{MEASURED}: CPU time of the process, by the kernel"
    yield row("CPU of the gateway, µs", costs.gateway_us, cpu)
    yield row("CPU of the database, µs", costs.database_us, cpu)
    yield row("CPU of Redis, µs", costs.redis_us, cpu)
    yield row("time of a commit, µs", costs.commit_us, f"{MEASURED}: flokit_commit_seconds")
    yield row("WAL, bytes", costs.wal_bytes, f"{MEASURED}: pg_current_wal_insert_lsn")
    for name, cost in costs.sent_bytes.items():
        yield row(f"{name}, bytes", cost, f"{MEASURED}: payload through a counting wire")
    yield row("CPU of a refusal, µs", Cost(costs.refused_us, 0), cpu)
    table = f"{MEASURED}: pg_table_size of the chunks"
    yield row("row in the table, bytes", Cost(costs.table_bytes, 0), table)
    indexes = f"{MEASURED}: pg_indexes_size of the chunks"
    yield row("row in both indexes, bytes", Cost(costs.index_bytes, 0), indexes)
    redis = f"{MEASURED}: used_memory of Redis"
    yield row("remembered in Redis, bytes", Cost(costs.redis_bytes, 0), redis)


def _need_rows(report: Report) -> Iterator[Row]:
    needs, assumed, spec = report.needs, report.assumed, report.deployed.autoscaler

    def row(name: str, of: Callable[[Need], str], how: str) -> Row:
        return (name, *map(of, needs), f"{COMPUTED}: {how}")

    goals = ", ".join(f"{target.metric} ≤ {target.value:g}" for target in spec.targets)
    yield row("pods", lambda n: _of(n, spec), f"{goals} each; at least {spec.replicas_min}")
    yield row("CPU of a pod, cores", lambda n: f"{n.pod_cores:.2f}", "rate of a pod · cost")
    in_flight = "rate · (1 to 1.5) commits"
    yield row("callbacks in flight in a pod", lambda n: f"{n.pod_in_flight:,.0f}", in_flight)
    yield row("events in a COPY", lambda n: f"{n.batch.events:,.0f}", "come during a commit")
    yield row("COPY statements/s", lambda n: f"{n.copies:,.0f}", "rate ÷ events in a COPY")
    usual = f"{CONNECTIONS_OF_A_POD} · pods"
    yield row("database connections", lambda n: f"{CONNECTIONS_OF_A_POD * n.pods:,}", usual)
    surged = f"all pods twice, with maxSurge {report.deployed.surge}, and lingering ones"
    yield row("the same, in a roll-out at most", lambda n: f"{n.connections:,}", surged)
    yield row("database, cores", lambda n: f"{n.database_cores:.1f}", "rate · cost")
    yield row("WAL/s", lambda n: _bytes(n.wal_bytes), "rate · cost")
    limits = (
        f"{assumed.database_cores * assumed.database_use:g} cores, "
        f"{assumed.database_wal_mb_s:g} MB of WAL/s, {assumed.database_connections} connections, "
        f"{assumed.database_disk_tb:g} TB"
    )
    yield row("databases", lambda n: f"{n.databases:,}", f"each at most {limits}")
    yield from (row(*window) for window in _windows(assumed))
    yield row("Redis, cores", lambda n: f"{n.redis_cores:.1f}", "rate · cost")
    disk = "rate · (table + indexes)"
    yield row("disk a day", lambda n: _bytes(n.disk_day_bytes), disk)
    kept = f"{assumed.kept_d:g} days, and {assumed.wal_kept_h:g} h of WAL"
    yield row("disk for all that is kept", lambda n: _bytes(n.disk_bytes), kept)
    one = f"one database's {assumed.database_disk_tb:g} TB, less WAL ÷ disk a day"
    yield row("one disk is full after, days", lambda n: f"{n.disk_full_d:,.1f}", one)
    yield row("WAL a day, archived", lambda n: _bytes(DAY_S * n.wal_bytes), "rate · cost")
    for name in report.costs.sent_bytes:
        bits = partial(_megabits, name)
        yield row(f"{name}, Mbit/s", bits, "rate · bytes, without TLS and TCP/IP")


def _windows(assumed: Assumptions) -> Iterator[tuple[str, Callable[[Need], str], str]]:
    for name in WINDOWS_D:

        def memory(need: Need, name: str = name) -> str:
            number = need.redises[name]
            return f"{_bytes(need.redis_bytes[name])} ({number:,})"

        how = f"rate · window · bytes (and how many of {assumed.redis_gb:g} GB)"
        yield f"Redis memory, {name}", memory, how


def _of(need: Need, spec: Spec) -> str:
    return f"{need.pods:,}" + (f" (of {spec.replicas_max})" if need.is_beyond_most else "")


def _megabits(name: str, need: Need) -> str:
    return f"{8 * need.sent_bytes[name] / 1e6:,.1f}"


def _story_rows(stories: Sequence[Story]) -> Iterator[Row]:
    def row(name: str, of: Any) -> Row:
        values = [of(story) for story in stories]
        return (name, *("never" if value is None else f"{round(value):,}" for value in values))

    yield row("callbacks/s before", lambda s: s.usual_rate)
    yield row("callbacks/s, at most", lambda s: s.rate_most)
    yield row("events/s that the database takes, at least", lambda s: s.database_least)
    yield row("callbacks offered", lambda s: s.offered)
    yield row("refused, or gone after a long wait", lambda s: s.refused)
    yield row("retries", lambda s: s.retried)
    yield row("given up after the last retry", lambda s: s.given_up)
    yield row("written", lambda s: s.written)
    yield row("still waiting after a day", lambda s: s.left)
    yield row("waiting in pods, at most", lambda s: s.waiting_most)
    yield row("waiting at the vendor, at most", lambda s: s.at_vendor_most)
    yield row("replicas before", lambda s: s.replicas_before)
    yield row("replicas while it lasts, at least", lambda s: s.replicas_least)
    yield row("replicas while it lasts, at most", lambda s: s.replicas_most)
    yield row("first new pod ready after, s", lambda s: s.scaled_s)
    yield row("most pods ready after, s", lambda s: s.grown_s)
    yield row("recovered (nobody refused or waiting) after, s", lambda s: s.recovered_s)
    yield row("everything written or given up after, s", lambda s: s.settled_s)
    yield row("as many replicas as before after, s", lambda s: s.shrunk_s)


def _bytes(number: float) -> str:
    """Return a size in the largest unit that leaves a whole part."""
    power = min(4, max(1, int(math.log10(max(1.0, number)) / 3)))
    scaled = number / 1000**power
    digits = 0 if scaled >= 100 else 1  # noqa: PLR2004 - three are enough
    return f"{scaled:,.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
