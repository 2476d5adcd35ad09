"""What processes cost: their CPU time and their memory, as the kernel has counted them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


class Times(NamedTuple):
    """CPU seconds of a process and of those children of its that have ended."""

    user_s: float
    system_s: float  # what the kernel did for it: sending, receiving, waking others up


def parse_stat(text: str) -> Times:
    """Read `/proc/PID/stat`; the name in it may hold anything, also spaces and parentheses."""
    # The names of the fields: proc_pid_stat(5). The third is the first behind the name.
    fields = text.rpartition(")")[2].split()
    user, system, ended_user, ended_system = map(int, fields[11:15])
    return Times((user + ended_user) / _TICKS, (system + ended_system) / _TICKS)


def cpu_times(pid: int) -> Times:
    """Return the CPU seconds of a process and of all that it has started, also what has ended."""
    texts = (_read(process, "stat") for process in _family(pid))
    times = [parse_stat(text) for text in texts if text]
    return Times(sum(time.user_s for time in times), sum(time.system_s for time in times))


def cpu_s(pid: int) -> float:
    """Return the sum of them."""
    return sum(cpu_times(pid))


def parse_peak(status: str) -> int:
    """Return the bytes of `VmHWM` in `/proc/PID/status`, the most that was ever resident."""
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_memory_bytes(pid: int) -> int:
    """Return the most memory that a process, or one that it has started, ever had resident."""
    texts = (_read(process, "status") for process in _family(pid))
    return max((parse_peak(text) for text in texts if "VmHWM" in text), default=0)


def forget_peak_memory(pid: int) -> None:
    """Let the peak of a process and of all that it has started begin anew."""
    for process in _family(pid):
        (PROC / str(process) / "clear_refs").write_text("5")  # proc_pid_clear_refs(5)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in _read(pid, f"task/{pid}/children").split():
        yield from _family(int(child))


def _read(pid: int, name: str) -> str:
    """Return a file of a process; nothing where it ended just now, and is part of its parent."""
    try:
        return (PROC / str(pid) / name).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
