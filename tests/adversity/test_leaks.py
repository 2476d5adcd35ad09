"""The search for leaked secrets, which ends every run of the tests, finds every leak."""

import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import asyncpg
import pytest
import redis.asyncio as redis

from bench.testbed.process import ROOT
from tests import leaks
from tests.gateways import SECRET, Services
from tests.unit.test_leaks import PLANTED


@pytest.mark.parametrize("column", ["user_id", "properties", "event_type"])
async def test_leak_in_a_table_is_found(
    database_url: str, connection: asyncpg.Connection, column: str
) -> None:
    """A table and a view are named that have the secret in any column."""
    assert await leaks.in_database(database_url, PLANTED) == []
    row = {
        "event_id": "gen_random_uuid()", "occurred_at": "now()", "received_at": "now()",
        "workspace_id": "''", "vendor": "''", "app_token": "''", "event_type": "''",
        "properties": "'{}'",
    }  # fmt: skip
    row[column] = f"""'{{"revenue": "x{PLANTED}x"}}'"""
    await connection.execute(
        f"INSERT INTO events ({','.join(row)}) VALUES ({','.join(row.values())})"
    )
    assert "public.events" in await leaks.in_database(database_url, PLANTED)


async def test_leak_in_redis_is_found(services: Services) -> None:
    """Keys are found that have the secret in their name, or in their value."""
    async with redis.from_url(services.redis_url) as client:
        keys = [f"{PLANTED}:name", "planted:text", "planted:hash", "planted:set", "planted:list"]
        await client.set(keys[0], "")
        await client.set(keys[1], PLANTED)
        await client.hset(keys[2], "field", PLANTED)
        await client.sadd(keys[3], PLANTED)
        await client.rpush(keys[4], "innocent", PLANTED)
        await client.zadd("planted:zset", {PLANTED: 1})
        found = await leaks.in_redis(services.redis_url, PLANTED)
        await client.delete("planted:zset", *keys)
    assert len(found) == 6
    assert await leaks.in_redis(services.redis_url, PLANTED) == []


LEAKING = """
import logging
from app.telemetry.metrics import REJECTED

def test_file(tmp_path): (tmp_path / "leaky.log").write_text(leaked)
def test_print(): print(leaked)
def test_log(): logging.getLogger("x").warning(leaked)
def test_metric(): REJECTED.labels(leaked).inc()
"""


@pytest.mark.parametrize("workers", [0, 2])
def test_leak_fails_the_run(tmp_path: Path, workers: int) -> None:
    """A run in which the secret was leaked fails, and names the place, and not the secret."""
    # In two parts, or else this run would find it in the file.
    leaked = f"leaked = {SECRET[:3]!r} + {SECRET[3:]!r}\n"
    tight = run(tmp_path, f"{leaked}def test_it(): pass\n", workers)
    assert (tight.returncode, tight.stdout.count("LEAKED")) == (0, 0), tight.stdout
    leaking = run(tmp_path, leaked + LEAKING, workers)
    assert leaking.returncode == pytest.ExitCode.TESTS_FAILED
    assert "4 passed" in leaking.stdout
    for place in ("leaky.log", "stdout call of ", "log call of ", "the metrics of "):
        assert re.search(f"^LEAKED: the secret stands in .*{place}", leaking.stdout, re.MULTILINE)
    assert SECRET not in leaking.stdout + leaking.stderr


def run(folder: Path, module: str, workers: int) -> subprocess.CompletedProcess[str]:
    """Run tests of these words in a process of their own, as ours are run."""
    (folder / "test_leaking.py").write_text(module)
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "tests.conftest", "-p", "no:cacheprovider",
        "--rootdir", str(ROOT), "--numprocesses", str(workers), str(folder),
    ]  # fmt: skip
    # Outside of our own folder, which is searched too, and of one that other runs may clean up.
    with TemporaryDirectory() as base:
        command.append(f"--basetemp={base}/run")
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
