"""What `capacity` tells: tables of what was measured, computed and assumed, JSON, and a picture."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bench import plots
from bench.capacity_costs import Cost, Costs
from bench.capacity_manifests import Deployed
from bench.capacity_model import (
    CONNECTIONS_OF_A_POD,
    WINDOWS_D,
    Assumptions,
    Need,
    described,
)
from bench.capacity_scenarios import Story
from bench.capacity_simulation import HORIZON_S, Moment
from bench.machine import Machine
from bench.report import markdown_table, print_table

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


def write(report: Report, runs: Mapping[str, Sequence[Moment]], folder: Path) -> Path:
    """Write everything into a folder of the run's own, and return the report's path."""
    folder = folder / f"capacity-{report.began:%Y-%m-%dT%H%M%S}Z"
    folder.mkdir(parents=True)
    for name, what in (("results", report), ("costs", report.costs), ("seconds", runs)):
        text = msgspec.json.encode(what)
        pretty = text if name == "seconds" else msgspec.json.format(text)
        (folder / f"{name}.json").write_bytes(pretty)
    draw(runs, report.deployed, folder / "autoscaler.svg")
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
    return "\n".join([*lines, "![the autoscaler, simulated](autoscaler.svg)", ""])


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
    yield "Assumptions", ("assumed", "value", "meaning"), described(report.assumed)
    names = [story.name for story in report.stories]
    yield "Autoscaler, simulated", ("figure", *names), _story_rows(report.stories)


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
    needs, assumed = report.needs, report.assumed
    spec = report.deployed.autoscaler

    def row(name: str, texts: Iterable[str], how: str) -> Row:
        return (name, *texts, f"{COMPUTED}: {how}")

    def plain(of: Any, form: str = ",.0f") -> list[str]:
        return [f"{of(need):{form}}" for need in needs]

    def sized(of: Any) -> list[str]:
        return [_bytes(of(need)) for need in needs]

    goals = ", ".join(f"{target.metric} ≤ {target.value:g}" for target in spec.targets)
    pods = [f"{n.pods:,}" + (f" (of {spec.replicas_max})" * n.is_beyond_most) for n in needs]
    yield row("pods", pods, f"{goals} each; at least {spec.replicas_min}")
    yield row("CPU of a pod, cores", plain(lambda n: n.pod_cores, ".2f"), "rate of a pod · cost")
    in_flight = plain(lambda n: n.pod_in_flight)
    yield row("callbacks in flight in a pod", in_flight, "rate · (1 to 1.5) commits")
    batch = plain(lambda n: n.batch.events)
    yield row("events in a COPY", batch, "what comes while one is committed")
    yield row("COPY statements/s", plain(lambda n: n.copies), "rate ÷ events in a COPY")
    connections = f"{CONNECTIONS_OF_A_POD} · pods, with maxSurge {report.deployed.surge}"
    yield row("database connections", plain(lambda n: n.connections), connections)
    yield row("database, cores", plain(lambda n: n.database_cores, ".1f"), "rate · cost")
    yield row("WAL/s", sized(lambda n: n.wal_bytes), "rate · cost")
    limits = f"{assumed.database_cores * assumed.database_use:g} cores"
    limits += f", {assumed.database_wal_mb_s:g} MB of WAL/s"
    limits += f", {assumed.database_connections} connections each"
    yield row("databases", plain(lambda n: n.databases), limits)
    for name in WINDOWS_D:
        memory = sized(lambda n, name=name: n.redis_bytes[name])
        yield row(f"Redis memory, {name}", memory, "rate · window · bytes")
    for name in WINDOWS_D:
        number = plain(lambda n, name=name: n.redises[name])
        yield row(f"Redis processes, {name}", number, f"{assumed.redis_gb:g} GB each")
    yield row("Redis, cores", plain(lambda n: n.redis_cores, ".1f"), "rate · cost")
    disk = "rate · (table + indexes)"
    yield row("disk a day", sized(lambda n: n.disk_day_bytes), disk)
    yield row("disk in 30 days", sized(lambda n: 30 * n.disk_day_bytes), disk)
    yield row("WAL a day, archived", sized(lambda n: n.wal_day_bytes), "rate · cost")
    for name in report.costs.sent_bytes:
        bits = [f"{8 * n.sent_bytes[name] / 1e6:,.1f}" for n in needs]
        yield row(f"{name}, Mbit/s", bits, "rate · bytes, without TLS and TCP/IP")


def _story_rows(stories: Sequence[Story]) -> Iterator[Row]:
    def row(name: str, of: Any) -> Row:
        values = [of(story) for story in stories]
        return (name, *("never" if value is None else f"{value:,.0f}" for value in values))

    yield row("callbacks offered", lambda s: s.offered)
    yield row("refused, and those of them that gave up waiting", lambda s: s.refused)
    yield row("retries", lambda s: s.retried)
    yield row("given up after the last retry", lambda s: s.given_up)
    yield row("written", lambda s: s.written)
    yield row("still waiting after a day", lambda s: s.left)
    yield row("waiting in pods, at most", lambda s: s.waiting_most)
    yield row("waiting for a retry, at most", lambda s: s.returning_most)
    yield row("replicas before", lambda s: s.replicas_before)
    yield row("replicas, at most", lambda s: s.replicas_most)
    yield row("replicas, at least, since the trouble began", lambda s: s.replicas_least)
    yield row("first new pod ready after, s", lambda s: s.scaled_s)
    yield row("most pods ready after, s", lambda s: s.grown_s)
    yield row("nobody is refused or waits for a second any more after, s", lambda s: s.recovered_s)
    yield row("everything written or given up after, s", lambda s: s.settled_s)
    yield row("as many replicas as before after, s", lambda s: s.shrunk_s)


def _bytes(number: float) -> str:
    """Return a size in the largest unit that leaves a whole part."""
    power = min(4, max(1, int(math.log10(max(1.0, number)) / 3)))
    scaled = number / 1000**power
    digits = 0 if scaled >= 100 else 1  # noqa: PLR2004 - three are enough
    return f"{scaled:,.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def draw(runs: Mapping[str, Sequence[Moment]], deployed: Deployed, path: Path) -> None:
    """Draw what happened in the first hour: rates above, replicas in the middle, queues below."""
    with rc_context(plots.SETTINGS):
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        axes = figure.subplots(3, len(runs), sharex=True, squeeze=False)
        for column, (name, moments) in enumerate(runs.items()):
            hour = moments[:HORIZON_S]
            minutes = [moment.at_s / 60 for moment in hour]
            _rates(axes[0][column], minutes, hour)
            _replicas(axes[1][column], minutes, hour, deployed.autoscaler.replicas_max)
            _queues(axes[2][column], minutes, hour)
            axes[0][column].set_title(name)
            axes[2][column].set_xlabel("minutes")
        for row, label in enumerate(("callbacks/s", "pods", "callbacks waiting")):
            axes[row][0].set_ylabel(label)
            axes[row][-1].legend(loc="upper right", fontsize="small")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _rates(axes: Any, minutes: Sequence[float], moments: Sequence[Moment]) -> None:
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.fill_between(minutes, [m.refused for m in moments], color="C3", alpha=0.5, label="refused")
    axes.plot(minutes, [m.arrived for m in moments], color="0.5", label="arriving")
    axes.plot(minutes, [m.written for m in moments], color="C2", label="written")
    axes.plot(minutes, [m.offered for m in moments], "k--", linewidth=1, label="offered")


def _replicas(
    axes: Any, minutes: Sequence[float], moments: Sequence[Moment], replicas_max: int
) -> None:
    axes.axhline(replicas_max, color="0.7", linestyle=":", label="maxReplicas")
    axes.step(minutes, [m.replicas for m in moments], where="post", label="wanted")
    axes.step(minutes, [m.ready for m in moments], where="post", label="ready")


def _queues(axes: Any, minutes: Sequence[float], moments: Sequence[Moment]) -> None:
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.set_yscale("log")
    axes.plot(minutes, [max(1, m.in_pods) for m in moments], label="in pods")
    axes.plot(minutes, [max(1, m.returning) for m in moments], label="for a retry")
