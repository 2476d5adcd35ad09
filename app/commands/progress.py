"""The progress of a long command on standard error: a bar on a terminal, a line at times else."""

import sys
import time
from typing import Self

BAR_CELLS = 20
BAR_S, LINE_S = 0.2, 5.0


class Progress:
    """Shows how much of `total` is done; `with` ends the line of the bar."""

    def __init__(self, total: int) -> None:
        self._total = max(total, 1)
        self._is_terminal = sys.stderr.isatty()
        self._started_at = self._shown_at = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def show(self, done: int) -> None:
        """Show the progress, unless it was shown a moment ago."""
        now = time.monotonic()
        if now - self._shown_at < (BAR_S if self._is_terminal else LINE_S):
            return
        self._shown_at = now
        per_s = done / max(now - self._started_at, 1e-3)
        part = min(done / self._total, 1)
        left = f"{_duration((self._total - done) / per_s)} left" if 0 < done < self._total else ""
        if self._is_terminal:
            cells = int(part * BAR_CELLS)
            bar = "#" * cells + "-" * (BAR_CELLS - cells)
            text = f"\r\x1b[K[{bar}] {part:4.0%}  {per_s:,.0f}/s  {left}"
            print(text, end="", file=sys.stderr, flush=True)
        else:
            text = f"{done:,} of {self._total:,} ({part:.0%}), {per_s:,.0f}/s, {left}"
            print(text.rstrip(", "), file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
