"""The machine of a measurement: figures of two machines cannot be compared without it."""

import os
import platform
import subprocess
import sysconfig
from importlib.metadata import version
from pathlib import Path

import msgspec

from bench.testbed.process import ROOT

PACKAGES = (
    "sanic", "uvloop", "httptools", "asyncpg", "redis", "hiredis", "msgspec", "fastapi", "uvicorn",
    "k6", "locust",
)  # fmt: skip


class Machine(msgspec.Struct, frozen=True):
    """A machine, and the versions of the software under test."""

    processor: str
    cores: int
    memory_mb: int
    kernel: str
    interpreter: str  # with its build, which changes the CPU of every figure
    servers: str
    packages: dict[str, str]
    commit: str


def describe_machine(servers: str) -> Machine:
    """Return this machine, and the versions in use."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Machine(
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory_mb=memory // 1024**2,
        kernel=f"{platform.system()} {platform.release()}",
        interpreter=describe_interpreter(),
        servers=servers,
        packages={name: version(name) for name in PACKAGES},
        commit=_commit(),
    )


def describe_interpreter() -> str:
    """Return the version of this Python, and the options of its build that change its speed."""
    options = str(sysconfig.get_config_var("CONFIG_ARGS") or "")
    known = {
        "--enable-optimizations": "PGO",
        "--with-lto": "LTO",
        "--enable-experimental-jit": "JIT",
        "--disable-gil": "no GIL",
        "--with-pydebug": "debug",
    }
    found = [name for option, name in known.items() if option in options]
    version_text = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{version_text} ({', '.join(found) or 'unoptimised'} build)"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit() -> str:
    """Return the commit of the working tree, with a `+` where files differ from it."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words],  # noqa: S607 - from PATH
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
