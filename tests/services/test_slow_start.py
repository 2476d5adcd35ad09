"""A slow start of a program of the bench: its vendor, proxies and reader go on meanwhile."""

import asyncio
from pathlib import Path

import pytest

from bench.testbed.pgbouncer import PgBouncer
from bench.testbed.process import BenchError


async def test_start_of_pgbouncer_leaves_the_event_loop_free(tmp_path: Path) -> None:
    """The event loop runs while PgBouncer is not ready yet."""
    program = tmp_path / "silent"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    silent = PgBouncer(program, tmp_path, "postgresql://127.0.0.1/none", "role", "password", {})
    starting = asyncio.create_task(silent.start_ready())
    try:
        await asyncio.sleep(0.1)
        assert not starting.done()
    finally:
        silent.stop()
    with pytest.raises(BenchError, match="does not become ready"):
        await starting
