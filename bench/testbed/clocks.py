"""Processes with a wrong clock, by libfaketime: the time of day, and no other clock."""

import re
from math import nan
from pathlib import Path

from app.dev.embedded import EmbeddedError, unpack
from bench.testbed.client import metrics
from bench.testbed.process import BenchError
from bench.testbed.waits import until_true

_INSTALLED = "usr/lib/*/faketime/libfaketime.so.1"
_AHEAD = "flokit_clock_ahead_seconds"
# A gateway compares the clocks every second, and a machine may be busy.
_CLOSE_S = 20.0


def find_libfaketime() -> Path:
    """The library: the host's, or else that of its release of Debian. Raises `EmbeddedError`.

    A library is loaded into a program of the host, so it must go with the host's C library.
    """
    if installed := next(Path("/").glob(_INSTALLED), None):
        return installed
    release = Path("/etc/os-release")
    codename = re.search(r"(?m)^VERSION_CODENAME=(\w+)", release.read_text())
    if codename is None:
        raise EmbeddedError(f"{release} names no release of Debian")
    return next(unpack(["libfaketime"], release=codename[1]).glob(_INSTALLED))


class Clock:
    """The clock of a process that was started with `environ`; it can be set while that runs."""

    def __init__(self, library: Path, file: Path) -> None:
        self._file = file
        self.set(0)
        self.environ = {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            # Waiting and measuring go by another clock, and a file has its true age.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "FAKETIME_DISABLE_SHM": "1",
        }

    def set(self, ahead_s: int) -> None:
        """Let the clock be so much ahead from now on, or behind."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead_s:+d}")
        new.replace(self._file)


async def until_ahead(port: int, ahead_s: float) -> None:
    """Return when a gateway reports that its clock is so much ahead; raises BenchError."""
    try:
        await until_true(lambda: _is_ahead(port, ahead_s))
    except TimeoutError:
        raise BenchError(
            f"the gateway on port {port} reports no clock {ahead_s:+g} s ahead"
        ) from None


async def _is_ahead(port: int, ahead_s: float) -> bool:
    measured_s = (await metrics(port)).get(_AHEAD, nan)
    return abs(measured_s - ahead_s) < _CLOSE_S
