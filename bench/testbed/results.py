"""What a measurement leaves behind: a folder with JSON, a report in Markdown, and plots as SVG."""

from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from matplotlib import rc_context
from matplotlib.figure import Figure

from bench.testbed.gateway import ROOT
from bench.testbed.machine import Machine

RESULTS = ROOT / "bench" / "results"
# The same figures give the same file, which can be compared.
SETTINGS: dict[Any, Any] = {"svg.hashsalt": "flokit", "font.size": 9, "axes.spines.top": False}


class Plot(NamedTuple):
    """A picture: its file's name without the ending, its title, and what paints it on axes."""

    name: str
    title: str
    paint: Callable[[Any], None]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A run: when, where, and in `plan` how long and how often everything was measured."""

    began: datetime
    ended: datetime
    machine: Machine
    plan: Any

    def facts(self) -> Iterator[str]:
        """Return what every report says first, as items of a list."""
        machine = self.machine
        minutes = (self.ended - self.began).total_seconds() / 60
        yield f"- {self.began:%Y-%m-%d %H:%M} UTC, {minutes:.1f} minutes, commit `{machine.commit}`"
        yield (
            f"- {machine.processor}, {machine.cores} cores, {machine.memory_mb:,} MB, "
            f"{machine.kernel}"
        )
        yield f"- Python {machine.python}; {machine.servers}"
        yield "- " + ", ".join(f"{name} {number}" for name, number in machine.packages.items())


def add_options(parser: ArgumentParser) -> None:
    """Add what every command that measures takes: where its data, logs and reports go."""
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where reports are written")


def write(
    report: Report, kind: str, folder: Path, text: Sequence[str], plots: Iterable[Plot]
) -> Path:
    """Write everything into a folder of the run's own, and return the path of the report.

    `text` is the report's Markdown; the plots come behind it.
    """
    folder = folder / f"{kind}-{report.began:%Y-%m-%dT%H%M%S}Z"
    folder.mkdir(parents=True)
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(report)))
    pictures = [f"![{plot.title}]({draw(plot, folder)})" for plot in plots]
    path = folder / "report.md"
    path.write_text("\n".join([*text, *pictures, ""]))
    return path


def draw(plot: Plot, folder: Path) -> str:
    """Write a plot, and return its file's name."""
    with rc_context(SETTINGS):
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots()
        plot.paint(axes)
        axes.set_title(plot.title)
        figure.savefig(folder / f"{plot.name}.svg", metadata={"Date": None})
    return f"{plot.name}.svg"
