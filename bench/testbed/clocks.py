"""Processes with a wrong clock, by libfaketime: the time of day, and no other clock."""

import re
from pathlib import Path

from app.dev.embedded import EmbeddedError, unpack

_INSTALLED = "usr/lib/*/faketime/libfaketime.so.1"


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
