"""The machine that a bench ran on, so that its figures can be compared with others."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench.testbed.gateway import ROOT

PACKAGES = (
    "sanic", "uvloop", "httptools", "asyncpg", "redis", "hiredis", "msgspec", "fastapi", "uvicorn",
    "k6", "locust",
)  # fmt: skip


class Machine(msgspec.Struct, frozen=True):
    """Where and with what it was measured."""

    processor: str
    cores: int
    memory_mb: int
    kernel: str
    python: str
    servers: str
    packages: dict[str, str]
    commit: str


def look_at_machine(servers: str) -> Machine:
    """Return what can be known of this machine and of the versions in use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_mb=memory // 1024**2,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        servers=servers,
        packages={name: version(name) for name in PACKAGES},
        commit=_commit(),
    )


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Return the commit that is checked out; `+` behind it says that files were changed since."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words],  # noqa: S607 - whichever git there is
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout.strip()

    try:
        return (git("rev-parse", "HEAD") or "unknown") + ("+" if git("status", "--short") else "")
    except OSError:
        return "unknown"
