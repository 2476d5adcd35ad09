"""The CPU time and the memory of processes, as the kernel counts them."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK")
PROC = Path("/proc")


class Times(NamedTuple):
    """CPU seconds of a process and of its ended children."""

    user_s: float
    system_s: float  # of the kernel on its behalf: sending, receiving, waking other processes


def parse_stat(text: str) -> Times:
    """Read `/proc/PID/stat`; its name field may hold spaces and parentheses."""
    # proc_pid_stat(5) names the fields. Its third follows the name.
    fields = text.rpartition(")")[2].split()
    user, system, ended_user, ended_system = map(int, fields[11:15])
    return Times((user + ended_user) / _TICKS, (system + ended_system) / _TICKS)


def cpu_times(pid: int) -> Times:
    """Return the CPU seconds of a process and its descendants, ended ones included."""
    texts = (_read(process, "stat") for process in _family(pid))
    times = [parse_stat(text) for text in texts if text]
    return Times(sum(time.user_s for time in times), sum(time.system_s for time in times))


def cpu_s(pid: int) -> float:
    """Return the sum of user and system seconds."""
    return sum(cpu_times(pid))


def parse_peak(status: str) -> int:
    """Return the bytes of `VmHWM` in `/proc/PID/status`, the peak of resident memory."""
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def peak_memory_bytes(pid: int) -> int:
    """Return the peak of resident memory of a process or one of its descendants."""
    texts = (_read(process, "status") for process in _family(pid))
    return max((parse_peak(text) for text in texts if "VmHWM" in text), default=0)


def reset_peak_memory(pid: int) -> None:
    """Reset the peak of a process and its descendants."""
    for process in _family(pid):
        (PROC / str(process) / "clear_refs").write_text("5")  # proc_pid_clear_refs(5)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for child in _read(pid, f"task/{pid}/children").split():
        yield from _family(int(child))


def _read(pid: int, name: str) -> str:
    """Return a file of a process; empty after its end, when its parent has its times."""
    try:
        return (PROC / str(pid) / name).read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
