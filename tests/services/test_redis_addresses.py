"""REDIS_URL for one server, a cluster and Sentinels, and the report of `check` on each."""

import asyncio
import subprocess
import sys
from pathlib import Path

from bench.testbed.process import ROOT, inherited
from tests.gateways import Process, environment
from tests.redis_topologies import PASSWORD, SERVICE, Cluster, Watched, client_of, url_of


async def check(server: Process, redis_url: str, folder: Path) -> tuple[int | None, list[str]]:
    """The exit code of `python -m app check`, and its lines about Redis."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", "check",
        cwd=ROOT,
        env=inherited() | environment(server.database_url, redis_url, folder),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    lines = output.decode().splitlines()
    return process.returncode, [line for line in lines if line[9:14] == "redis"]


async def test_check_reports_a_cluster(
    redis_cluster: Cluster, server: Process, tmp_path: Path
) -> None:
    """`check` reports the state of a cluster and of each primary."""
    primaries = await redis_cluster.primaries()
    hosts = ",".join(f"127.0.0.1:{node.port}" for node in redis_cluster.nodes[-2:])
    exit_code, (first, *others) = await check(
        server, f"redis+cluster://:{PASSWORD}@{hosts}", tmp_path
    )
    assert first == "ok       redis cluster: state ok, 3 primaries, 16384 slots served"
    assert len(others) == 2 * len(primaries)
    for primary, line in zip(primaries, others[::2], strict=True):
        assert line.startswith(f"ok       redis 127.0.0.1:{primary.port}: Redis ")
        assert line.endswith(", 1 replicas")
    assert exit_code == 0
    async with client_of(primaries[1]) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            exit_code, (_, *others) = await check(
                server, f"redis+cluster://:{PASSWORD}@{hosts}", tmp_path
            )
        finally:
            await redis.config_set("maxmemory-policy", "noeviction")
    assert others[3].startswith(f"warning  redis 127.0.0.1:{primaries[1].port} maxmemory-policy: ")
    assert exit_code == 0


async def test_check_reports_the_primary_of_sentinels(
    redis_watched: Watched, server: Process, tmp_path: Path
) -> None:
    """`check` reports the current primary, or that the service is unknown."""
    primary = await redis_watched.primary()
    exit_code, (line, _) = await check(server, redis_watched.url, tmp_path)
    assert line.startswith(f"ok       redis 127.0.0.1:{primary.port}: Redis ")
    assert line.endswith(", 1 replicas")
    assert exit_code == 0
    exit_code, [line] = await check(server, redis_watched.url.replace(SERVICE, "other"), tmp_path)
    assert line.startswith("FAILED   redis: does not answer: No master found for 'other'")
    assert exit_code == 1


async def test_check_detects_a_server_of_another_kind(
    redis_cluster: Cluster, redis_watched: Watched, server: Process, tmp_path: Path
) -> None:
    """A server that is no primary of the address's kind fails the check at once."""
    node = redis_cluster.nodes[0]
    exit_code, [line, _] = await check(server, url_of(node), tmp_path)
    assert line == "FAILED   redis: runs in mode cluster: see REDIS_URL in docs/configuration.md"
    assert exit_code == 1
    sentinel = redis_watched.sentinels[0]
    exit_code, [line, _] = await check(server, f"redis://127.0.0.1:{sentinel.port}", tmp_path)
    assert line == "FAILED   redis: runs in mode sentinel: see REDIS_URL in docs/configuration.md"
    primary = await redis_watched.primary()
    replica = next(one for one in redis_watched.servers if one is not primary)
    exit_code, [line, _] = await check(server, url_of(replica), tmp_path)
    assert line == "FAILED   redis: is a replica, which takes no claims"
    exit_code, [line] = await check(
        server, f"redis+cluster://:{PASSWORD}@127.0.0.1:{primary.port}", tmp_path
    )
    assert line.startswith("FAILED   redis: does not answer: ")
    assert exit_code == 1
