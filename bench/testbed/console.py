"""Progress and tables on the console; the tables are Markdown."""

import re
from collections.abc import Iterable, Sequence
from io import StringIO
from types import TracebackType
from typing import Self

from rich import progress
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

# Independent of the terminal: no column of a table is cut off.
WIDTH = 200
_ESTIMATE_S = 900


class Progress:
    """A progress bar on standard error, with the name of the current step; a context manager."""

    def __init__(self, total: int, unit: str) -> None:
        self._bar = progress.Progress(
            progress.TextColumn("{task.completed:,.0f} of {task.total:,.0f} " + unit),
            progress.BarColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left:"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.description}"),
            console=Console(stderr=True),
            # Over many steps, each of which has a speed of its own.
            speed_estimate_period=_ESTIMATE_S,
        )
        self._from = 0.0
        self._task = self._bar.add_task("starting", total=total)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, completed: float) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=self._from + completed)

    def count_from(self, completed: float) -> None:
        """Show what follows on top of this."""
        self._from = completed

    def step(self, text: str) -> None:
        """Name the current step."""
        self._bar.update(self._task, description=text)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on standard output, in Markdown; numbers are aligned to the right."""
    _print(headings, rows, Console(width=WIDTH, highlight=False, markup=False))


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a table in Markdown."""
    text = StringIO()
    _print(headings, rows, Console(file=text, width=WIDTH, highlight=False, markup=False))
    return "".join(f"{line.strip()}\n" for line in text.getvalue().splitlines() if line.strip())


def _print(headings: Sequence[str], rows: Iterable[Sequence[object]], console: Console) -> None:
    texts = [[_text(value) for value in row] for row in rows]
    table = Table(box=MARKDOWN)
    for place, heading in enumerate(headings):
        is_number = all(re.fullmatch(r"[0-9.,]*", row[place]) for row in texts)
        table.add_column(heading, justify="right" if is_number else "left", no_wrap=True)
    for row in texts:
        table.add_row(*row)
    console.print(table)


def _text(value: object) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)
