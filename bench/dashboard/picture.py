"""The picture of the dashboard: what Prometheus answered, drawn where Grafana would draw it."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, PercentFormatter

COLUMNS = 24
WIDTH_IN, UNIT_IN = 16.0, 0.27
LEGEND_MAX = 6
_SETTINGS: dict[Any, Any] = {
    "font.size": 7, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.5,
    "axes.grid": True, "grid.linewidth": 0.3, "lines.linewidth": 0.9,
}  # fmt: skip

Lines = Sequence[tuple[str, Sequence[tuple[float, float]]]]


def draw(series: Sequence[tuple[Any, Lines]], picture: Path) -> None:
    """Write a PNG of panels with their lines: a name, and values by seconds since the start."""
    height = max(panel.place["y"] + panel.place["h"] for panel, _ in series)
    with rc_context(_SETTINGS):
        figure = Figure(figsize=(WIDTH_IN, height * UNIT_IN), dpi=72)
        for panel, lines in series:
            _draw_panel(figure, panel, lines, height)
        figure.savefig(picture, metadata={"Software": None})


def _draw_panel(figure: Figure, panel: Any, lines: Lines, height: int) -> None:
    x, y, w, h = (panel.place[side] for side in "xywh")
    top = 1 - y / height
    figure.text((x + 0.15) / COLUMNS, top - 0.75 / height, panel.title, weight="bold", size=8)
    if panel.type == "row":
        return
    # Room for the title above, the numbers at the left, and the seconds below.
    left, bottom = (x + 0.9) / COLUMNS, top - (h - 1.0) / height
    axes = figure.add_axes((left, bottom, (w - 1.2) / COLUMNS, (h - 2.2) / height))
    if panel.type == "stat":
        _draw_numbers(axes, panel.unit, lines)
    else:
        _draw_lines(axes, panel, lines)


def _draw_numbers(axes: Any, unit: str, lines: Lines) -> None:
    axes.set_axis_off()
    said = [f"{name}: {_number(unit, values[-1][1])}" for name, values in lines]
    axes.text(0.5, 0.5, "\n".join(said), ha="center", va="center", size=10)


def _number(unit: str, value: float) -> str:
    if unit == "percentunit":
        return f"{value:,.1%}"
    if unit == "dateTimeFromNow":
        return "used" if value else "never used"
    return f"{value:g}"


def _draw_lines(axes: Any, panel: Any, lines: Lines) -> None:
    if panel.is_stacked and lines:
        moments = sorted({moment for _, values in lines for moment, _ in values})
        by_moment = [dict(values) for _, values in lines]
        heights = [[of.get(moment, 0.0) for moment in moments] for of in by_moment]
        axes.stackplot(moments, heights, labels=[name for name, _ in lines], alpha=0.7)
    else:
        for name, values in lines:
            drawn = [(moment, value) for moment, value in values if math.isfinite(value)]
            axes.plot(*zip(*drawn, strict=True) if drawn else ((), ()), label=name)
    if panel.is_logarithmic:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(
        {
            "percentunit": PercentFormatter(1.0),
            "s": EngFormatter("s"),
            "bytes": EngFormatter("B"),
            "reqps": EngFormatter("/s"),
            "ops": EngFormatter("/s"),
        }.get(panel.unit, EngFormatter())
    )
    axes.xaxis.set_major_formatter(FuncFormatter(lambda moment, _: f"{moment:.0f} s"))
    if lines:
        # The names of the largest, where there are many.
        peaks = [max(value for _, value in values) for _, values in lines]
        order = sorted(range(len(lines)), key=lambda number: -peaks[number])[:LEGEND_MAX]
        handles, names = axes.get_legend_handles_labels()
        shown = [handles[number] for number in order], [names[number] for number in order]
        axes.legend(*shown, fontsize=6, frameon=False, ncols=2)
