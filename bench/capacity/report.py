"""The report of `capacity`: measured costs, computed needs, and one picture of them."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from matplotlib.axes import Axes

from bench.capacity.costs import Costs, Level
from bench.capacity.manifests import Deployed
from bench.capacity.model import (
    BATCH_MAX_EVENTS,
    CONNECTIONS_OF_A_POD,
    DAY_S,
    WINDOWS_D,
    Assumptions,
    Need,
)
from bench.testbed.console import markdown_table
from bench.testbed.results import Plot, Results

Row = tuple[object, ...]
_LEVELS = (
    "callers", "answers/s", "events in a batch", "commit, ms", "gateway, µs", "database, µs",
    "Redis, µs", "WAL, bytes",
)  # fmt: skip


class CapacityResults(Results, frozen=True, kw_only=True):
    """One run. `costs` may be those of another machine; `curve` has more rates, for the picture."""

    costs: Costs
    assumed: Assumptions
    deployed: Deployed
    needs: list[Need]
    curve: list[Need]


def tables(results: CapacityResults) -> str:
    """Return the measured costs and the computed needs, in Markdown."""
    costs, parts = results.costs, []
    if costs.levels:
        parts += [
            "Measured, by the number of callers:\n",
            markdown_table(_LEVELS, map(_level_row, costs.levels)),
        ]
    request, answer = (costs.sent_bytes[name].at(1) for name in _CALLER)
    sizes = (
        f"Measured: {costs.table_bytes:.0f} bytes of table and {costs.index_bytes:.0f} of indexes"
        f" a row, {costs.redis_bytes:.0f} bytes of Redis an event, {request:.0f} bytes of request"
        f" and {answer:.0f} of answer, {costs.refused_us:.0f} µs of CPU for a refusal.\n"
    )
    parts += [
        sizes,
        "Computed:\n",
        markdown_table(
            ("new events", *(f"{need.rate:,.0f}/s" for need in results.needs)),
            _need_rows(results),
        ),
    ]
    return "\n".join(parts)


def notes(results: CapacityResults) -> Iterator[str]:
    """Yield a sentence for each need beyond a limit."""
    for need in results.needs:
        if need.is_beyond_max:
            yield (
                f"{need.rate:,.0f}/s: {need.pods} pods; the autoscaler may start "
                f"{results.deployed.replicas_max}."
            )
        if need.cells > 1:
            scarcest = max(need.cells_by, key=need.cells_by.__getitem__)
            yield (
                f"{need.rate:,.0f}/s is too much for one PostgreSQL, first of all in {scarcest}, "
                f"with a disk full after {need.disk_full_d:,.1f} days: {need.cells} cells, each "
                f"with a database, Redis and {need.cell_pods} pods for some of the apps."
            )


_CALLER = ("vendor to gateway", "gateway to vendor")


def _level_row(level: Level) -> Row:
    figures = (
        level.batch_events, level.commit_ms, level.gateway_us, level.database_us, level.redis_us,
    )  # fmt: skip
    measured = (f"{figure:.1f}" for figure in figures)
    return (level.callers, round(level.rate), *measured, round(level.wal_bytes))


def _need_rows(results: CapacityResults) -> Iterator[Row]:
    needs, assumed, deployed = results.needs, results.assumed, results.deployed

    def row(name: str, of: Callable[[Need], str]) -> Row:
        return (name, *map(of, needs))

    goal = f"{deployed.cores_target:g} cores each, at least {deployed.replicas_min}"
    yield row(f"pods ({goal})", lambda n: f"{n.pods:,}")
    yield row(f"events in a COPY (at most {BATCH_MAX_EVENTS})", lambda n: f"{n.batch.events:,.0f}")
    yield row("COPY statements/s", lambda n: f"{n.copies:,.0f}")
    yield row(
        "database connections (in a roll-out at most)",
        lambda n: f"{CONNECTIONS_OF_A_POD * n.pods:,} ({n.connections:,})",
    )
    yield row("database, cores", lambda n: f"{n.database_cores:.1f}")
    yield row("WAL/s", lambda n: _bytes(n.wal_bytes))
    yield row("cells, of one database each", lambda n: f"{n.cells:,}")
    yield row(
        f"cells by {', '.join(needs[0].cells_by)}",
        lambda n: ", ".join(f"{cells:,}" for cells in n.cells_by.values()),
    )
    yield row("pods of each cell", lambda n: f"{n.cell_pods:,}")
    for name in WINDOWS_D:
        yield row(f"Redis memory, {name} (of {assumed.redis_gb:g} GB each)", partial(_redis, name))
    yield row("Redis, cores", lambda n: f"{n.redis_cores:.1f}")
    yield row("disk a day", lambda n: _bytes(n.disk_day_bytes))
    kept = f"disk for {assumed.kept_d:g} days{_columnstore(assumed)}"
    yield row(f"{kept}, and {assumed.wal_kept_h:g} h of WAL", lambda n: _bytes(n.disk_bytes))
    full = f"a disk of {assumed.database_disk_tb:g} TB is full after, days"
    yield row(full, lambda n: f"{n.disk_full_d:,.1f}")
    yield row("WAL a day, archived", lambda n: _bytes(DAY_S * n.wal_bytes))
    for name in results.costs.sent_bytes:
        yield row(f"{name}, Mbit/s", partial(_megabits, name))


def _columnstore(assumed: Assumptions) -> str:
    if assumed.columnstore_factor == 1:
        return ""
    return (
        f" (after {assumed.columnstore_after_d:g}: 1/{assumed.columnstore_factor:g}, columnstore)"
    )


def _redis(window: str, need: Need) -> str:
    return f"{_bytes(need.redis_bytes[window])} ({need.redises[window]:,})"


def _megabits(network: str, need: Need) -> str:
    return f"{8 * need.sent_bytes[network] / 1e6:,.1f}"


def _bytes(number: float) -> str:
    """Return a size in the largest unit with a whole part."""
    power = min(4, max(1, int(math.log10(max(1.0, number)) / 3)))
    scaled = number / 1000**power
    digits = 0 if scaled >= 100 else 1  # noqa: PLR2004 - three are enough
    return f"{scaled:,.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def plot(results: CapacityResults) -> Plot:
    """Return the picture: pods and cells over the rate."""

    def paint(axes: Axes) -> None:
        rates = [need.rate for need in results.curve]
        limit = results.deployed.replicas_max
        axes.plot(rates, [need.pods for need in results.curve], label="pods")
        axes.plot(rates, [need.cells for need in results.curve], label="cells")
        axes.axhline(limit, color="0.7", linestyle=":", label=f"maxReplicas of k8s/base: {limit}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("new events/s")
        axes.legend()

    return Plot("capacity", "Pods and cells over the rate", paint)


def curve_rates(rates: Sequence[int], steps: int = 20) -> list[float]:
    """Return the rates of the picture: evenly spread over the logarithms."""
    low, high = math.log10(min(rates)), math.log10(max(rates))
    return [10 ** (low + (high - low) * step / steps) for step in range(steps + 1)]
