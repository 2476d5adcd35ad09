"""Load by real tools in processes of their own: wrk, k6, and the durable floor.

Each ends with the task that waits for it.
"""

import asyncio
import os
import secrets
import sys
import sysconfig
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from app.dev.embedded import unpack
from bench.testbed.callbacks import APPS, EVENTS, SECRET
from bench.testbed.messages import message_file
from bench.testbed.process import ROOT, BenchError

CONNECTIONS = 64
CALLERS_MAX = 2_000  # of k6, each of which takes megabytes
_BENCH = Path(__file__).parents[1]
# The time of a tool beyond its duration: k6 waits for the last answers.
PATIENCE_S = 60.0
K6_FAILED_THRESHOLDS = 99


class Mix(NamedTuple):
    """The callbacks of a load: their vendor, and the shares of duplicates and unmapped events."""

    duplicates: float = 0.0
    unmapped: float = 0.0
    vendor: str = "adjust"

    @property
    def endpoint(self) -> str:
        """The path of the callbacks."""
        return f"/ingest/{self.vendor}"


FRESH = Mix()


class Peak(msgspec.Struct, frozen=True):
    """The figures of wrk. `fresh` is the number of different events that it has begun to send."""

    requests: int
    duration_s: float
    generated: int
    fresh: int
    dropped: int
    not_200: int
    broken: int
    timed_out: int
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Latency(msgspec.Struct, frozen=True):
    """The figures of k6 at a fixed rate. `late` callbacks were not sent, for want of callers."""

    offered: float
    sent: int
    written: int
    duplicate: int
    dropped: int
    unanswered: int
    late: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    p999_ms: float


async def run_wrk(
    port: int,
    duration_s: float,
    *,
    folder: Path,
    mix: Mix = FRESH,
    connections: int = CONNECTIONS,
) -> Peak:
    """Load a server in a closed loop: so many connections, each with one callback at a time."""
    wrk = await asyncio.to_thread(unpack, ["wrk"])
    output = await run_tool(
        [
            str(wrk / "usr/bin/wrk"),
            "--threads=1",
            f"--connections={connections}",
            f"--duration={max(1, round(duration_s))}s",
            f"--script={_BENCH / 'wrk/callbacks.lua'}",
            f"http://127.0.0.1:{port}{mix.endpoint}",
        ],
        settings(mix) | {"JSON": "1"},
        duration_s,
        folder,
    )
    return msgspec.json.decode(output.splitlines()[-1], type=Peak)


async def run_k6(
    port: int,
    rate: float,
    duration_s: float,
    *,
    folder: Path,
    mix: Mix = FRESH,
    script: str = "steady",
    warm_up_s: float = 0,
) -> Latency:
    """Load a server in an open loop: callbacks at a fixed rate, independent of the answers.

    k6 opens its connections in the warm-up, which is part of the counts, not of the percentiles.
    """
    summary = folder / "k6.json"
    await run_tool(
        [
            str(program("k6")),
            "run",
            "--quiet",
            "--no-usage-report",
            "--address=",
            f"--summary-export={summary}",
            str(_BENCH / f"k6/{script}.js"),
        ],
        settings(mix)
        | {
            "URL": f"http://127.0.0.1:{port}{mix.endpoint}",
            "RATE": f"{rate:.0f}",
            "DURATION": f"{duration_s:.0f}s",
            "WARM_UP": f"{warm_up_s:.0f}s",
            # Fewer garbage collections, which would take a core away from the gateway.
            "GOGC": "800",
            # Enough for a pause of half a second: k6 adds callers too slowly.
            "CALLERS": str(min(max(CONNECTIONS, round(rate / 2)), CALLERS_MAX)),
        },
        warm_up_s + duration_s,
        folder,
        # The script's threshold is for clusters.
        allowed=(0, K6_FAILED_THRESHOLDS),
    )
    return parse_k6(rate, summary.read_bytes())


class _Summary(msgspec.Struct):
    metrics: dict[str, dict[str, float | bool | dict[str, bool]]]


def parse_k6(rate: float, summary: bytes) -> Latency:
    """Read the file of `k6 --summary-export`."""
    metrics = msgspec.json.decode(summary, type=_Summary).metrics

    def number(name: str, field: str) -> float:
        value = metrics.get(name, {}).get(field, 0)
        assert isinstance(value, float | int)
        return value

    def count(name: str) -> int:
        return int(number(name, "count"))

    took = partial(number, "http_req_duration{scenario:load}")
    return Latency(
        offered=rate,
        sent=count("http_reqs"),
        written=count("callbacks_written"),
        duplicate=count("callbacks_duplicate"),
        dropped=count("callbacks_dropped"),
        unanswered=count("callbacks_unanswered"),
        late=count("dropped_iterations{scenario:load}"),
        p50_ms=took("med"),
        p95_ms=took("p(95)"),
        p99_ms=took("p(99)"),
        p999_ms=took("p(99.9)"),
    )


async def run_durable_floor(
    environ: Mapping[str, str], rate: float, duration_s: float, *, folder: Path
) -> dict[str, float]:
    """Return the percentiles, in milliseconds, of a claim and a COPY of one row at a time."""
    output = await run_tool(
        [sys.executable, "-m", "bench.contenders.durable_floor"],
        dict(environ) | {"RATE": str(rate), "DURATION": str(duration_s), "PYTHONPATH": str(ROOT)},
        duration_s,
        folder,
    )
    return msgspec.json.decode(output, type=dict[str, float])


def settings(mix: Mix) -> dict[str, str]:
    """Return the environment of all tools; each run has users of its own."""
    message = {} if mix.vendor == "adjust" else {"MESSAGE": str(message_file(mix.vendor))}
    return message | {
        "SECRET": SECRET,
        "APP_TOKEN": next(iter(APPS)),
        "EVENT_TOKEN": next(iter(EVENTS)),
        "DUPLICATES": str(mix.duplicates),
        "UNMAPPED": str(mix.unmapped),
        "RUN": f"r{secrets.token_hex(4)}",
    }


def program(name: str) -> Path:
    """Return the path of a program of a Python package."""
    return Path(sysconfig.get_path("scripts")) / name


async def run_tool(
    command: Sequence[str],
    environ: Mapping[str, str],
    duration_s: float,
    folder: Path,
    allowed: Sequence[int] = (0,),
) -> bytes:
    """Run a tool to its end and return its output; raises BenchError where it fails."""
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": os.environ.get("PATH", os.defpath)} | dict(environ),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        async with asyncio.timeout(duration_s + PATIENCE_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise BenchError(f"{Path(command[0]).name} does not end") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode not in allowed:
        last = b" | ".join((errors or output).splitlines()[-4:]).decode(errors="replace")
        raise BenchError(f"{Path(command[0]).name} fails ({process.returncode}): {last}")
    return output
