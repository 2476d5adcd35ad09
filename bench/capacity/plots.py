"""The picture of the autoscaler, simulated."""

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from bench.capacity.manifests import Deployed
from bench.capacity.simulation import HORIZON_S, Moment
from bench.testbed.results import SETTINGS

# The other stories differ in their replicas only, which are in the table.
DRAWN = 3
STEP_S = 10


def hour(moments: Sequence[Moment]) -> Sequence[Moment]:
    """Return as many of the moments as make a picture."""
    return moments[:HORIZON_S:STEP_S]


def draw(runs: Mapping[str, Sequence[Moment]], deployed: Deployed, path: Path) -> None:
    """Draw what happened in the first hour: rates above, replicas in the middle, queues below."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(11, 6.5), layout="constrained")
        axes = figure.subplots(3, DRAWN, sharex=True)
        for column, (name, moments) in enumerate(islice(runs.items(), DRAWN)):
            shown = hour(moments)
            minutes = [moment.at_s / 60 for moment in shown]
            _rates(axes[0][column], minutes, shown)
            _replicas(axes[1][column], minutes, shown, deployed.autoscaler.replicas_max)
            _queues(axes[2][column], minutes, shown)
            axes[0][column].set_title(name)
            axes[2][column].set_xlabel("minutes")
        for row, label in enumerate(("callbacks/s", "pods", "callbacks waiting")):
            axes[row][0].set_ylabel(label)
            axes[row][0].legend(loc="upper right", fontsize="small")
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
    axes.set_ylim(0, 1.1 * replicas_max)


def _queues(axes: Any, minutes: Sequence[float], moments: Sequence[Moment]) -> None:
    axes.yaxis.set_major_formatter(EngFormatter())
    axes.set_yscale("log")
    axes.plot(minutes, [max(1, m.in_pods) for m in moments], label="in pods")
    axes.plot(minutes, [max(1, m.at_vendor) for m in moments], label="at the vendor")
    axes.set_ylim(1, 1e9)
