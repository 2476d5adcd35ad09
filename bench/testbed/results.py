"""The results of a measurement: a folder with JSON, a report in Markdown, and plots as SVG."""

import argparse
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgspec
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.testbed.machine import Machine
from bench.testbed.process import ROOT

RESULTS = ROOT / "bench" / "results"
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # noqa: SLF001


class Plot(NamedTuple):
    """A picture: the name of its file without the ending, its title, and its painter."""

    name: str
    title: str
    paint: Callable[[Axes], None]


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """One run; `schedule` has the number and the duration of its measurements."""

    began: datetime
    ended: datetime
    machine: Machine
    schedule: msgspec.Struct | None

    def facts(self) -> Iterator[str]:
        """Yield the first lines of every report, as items of a list."""
        machine = self.machine
        minutes = (self.ended - self.began).total_seconds() / 60
        yield f"- {self.began:%Y-%m-%d %H:%M} UTC, {minutes:.1f} minutes, commit `{machine.commit}`"
        yield (
            f"- {machine.processor}, {machine.cores} cores, {machine.memory_mb:,} MB, "
            f"{machine.kernel}"
        )
        yield f"- {machine.interpreter}; {machine.servers}"
        yield "- " + ", ".join(f"{name} {number}" for name, number in machine.packages.items())


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of every command that measures: folders for data, logs and reports."""
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where reports are written")


def write(
    results: Results, kind: str, folder: Path, text: Sequence[str], plots: Iterable[Plot]
) -> Path:
    """Write everything into a folder of the run's own, and return the path of the report.

    `text` is the report's Markdown; the plots follow it.
    """
    folder = folder / f"{kind}-{results.began:%Y-%m-%dT%H%M%S}Z"
    folder.mkdir(parents=True)
    (folder / "results.json").write_bytes(msgspec.json.format(msgspec.json.encode(results)))
    pictures = [f"![{plot.title}]({draw(plot, folder)})" for plot in plots]
    path = folder / "report.md"
    path.write_text("\n".join([*text, *pictures, ""]))
    return path


def draw(plot: Plot, folder: Path) -> str:
    """Write a plot, and return the name of its file."""
    # The same figures give the same file: two files can be compared.
    with rc_context({"svg.hashsalt": "flokit", "font.size": 9, "axes.spines.top": False}):
        figure = Figure(figsize=(8, 3), layout="constrained")
        axes = figure.subplots()
        plot.paint(axes)
        axes.set_title(plot.title)
        figure.savefig(folder / f"{plot.name}.svg", metadata={"Date": None})
    return f"{plot.name}.svg"
