"""REDIS_URL for one server, a cluster and Sentinels; and what `check` says of each of them."""

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio.connection import SSLConnection

from app.claims.addresses import Kind, read_address
from app.settings import SettingsError
from bench.testbed.process import ROOT, inherited
from tests.gateways import Process, environment
from tests.redis_topologies import PASSWORD, SERVICE, Cluster, Watched, asking, url_of


def test_address_of_a_cluster() -> None:
    """Every node is named, and each is spoken to as the same user."""
    address = read_address("rediss+cluster://me:pa%40ss,word@one:7000,[::1]:7001,three")
    assert address.kind is Kind.CLUSTER
    assert [(place["host"], place["port"]) for place in address.places] == [
        ("one", 7000), ("::1", 7001), ("three", 6379),
    ]  # fmt: skip
    for place in address.places:
        assert (place["username"], place["password"]) == ("me", "pa@ss,word")
        assert place["connection_class"] is SSLConnection


def test_address_behind_sentinels() -> None:
    """The last word is the service; options are those of the client."""
    address = read_address("redis+sentinel://:word@one:26380,two/my%20claims?db=3")
    assert (address.kind, address.service) == (Kind.SENTINEL, "my claims")
    assert [(place["host"], place["port"], place["db"]) for place in address.places] == [
        ("one", 26380, 3), ("two", 26379, 3),
    ]  # fmt: skip
    assert [place["password"] for place in address.places] == ["word", "word"]


@pytest.mark.parametrize(
    "rest",
    [
        "+cluster://:pa55w0rd@one:7000,",
        "+cluster://:pa55w0rd@,one:7000",
        "+cluster://:pa55w0rd@one:port",
        "+cluster://:pa55w0rd@one:7000/1",
        "+cluster://:pa55w0rd@one:7000?db=1",
        "+cluster://:pa55w0rd@one:7000?no_such_option=1",
        "+sentinel://:pa55w0rd@one:26379",
        "+sentinel://:pa55w0rd@one:26379/",
        "+sentinel://:pa55w0rd@:26379/claims",
        "+sentinel://:pa55w0rd@one:70000/claims",
        "+cluster://:pa55w0rd@[::1:7000",
        "+ring://:pa55w0rd@one:7000",
        "://:pa55w0rd@one:port",
    ],
)
def test_wrong_address(rest: str) -> None:
    """A wrong address is told in one line that names the variable and hides the password."""
    with pytest.raises(SettingsError, match=r"^REDIS_URL: not an address of the form redis") as why:
        read_address(f"redis{rest}")
    assert "\n" not in str(why.value)
    assert "pa55w0rd" not in str(why.value)
    assert why.value.__cause__ is None


async def check(server: Process, redis_url: str, folder: Path) -> tuple[int | None, list[str]]:
    """The exit code of `python -m app check`, and what it says of Redis."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "app", "check",
        cwd=ROOT,
        env=inherited() | environment(server.database_url, redis_url, folder),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    said, _ = await process.communicate()
    lines = said.decode().splitlines()
    return process.returncode, [line for line in lines if line[9:14] == "redis"]


async def test_check_of_a_cluster(redis_cluster: Cluster, server: Process, tmp_path: Path) -> None:
    """`check` tells the state of a cluster, and looks at each of its primaries."""
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
    async with asking(primaries[1]) as redis:
        await redis.config_set("maxmemory-policy", "allkeys-lru")
        exit_code, (_, *others) = await check(
            server, f"redis+cluster://:{PASSWORD}@{hosts}", tmp_path
        )
        await redis.config_set("maxmemory-policy", "noeviction")
    assert others[3].startswith(f"warning  redis 127.0.0.1:{primaries[1].port} maxmemory-policy: ")
    assert exit_code == 0


async def test_check_behind_sentinels(
    redis_watched: Watched, server: Process, tmp_path: Path
) -> None:
    """`check` tells who is the primary now."""
    primary = await redis_watched.primary()
    exit_code, (line, _) = await check(server, redis_watched.url, tmp_path)
    assert line.startswith(f"ok       redis 127.0.0.1:{primary.port}: Redis ")
    assert line.endswith(", 1 replicas")
    assert exit_code == 0
    exit_code, [line] = await check(server, redis_watched.url.replace(SERVICE, "other"), tmp_path)
    assert line.startswith("FAILED   redis: does not answer: No master found for 'other'")
    assert exit_code == 1


async def test_address_of_another_kind(
    redis_cluster: Cluster, redis_watched: Watched, server: Process, tmp_path: Path
) -> None:
    """An address whose server is no primary of its kind is found out, and is not waited for."""
    node = redis_cluster.nodes[0]
    exit_code, [line, _] = await check(server, url_of(node), tmp_path)
    assert line == "FAILED   redis: runs in mode cluster: see REDIS_URL in the README"
    assert exit_code == 1
    sentinel = redis_watched.sentinels[0]
    exit_code, [line, _] = await check(server, f"redis://127.0.0.1:{sentinel.port}", tmp_path)
    assert line == "FAILED   redis: runs in mode sentinel: see REDIS_URL in the README"
    primary = await redis_watched.primary()
    replica = next(one for one in redis_watched.servers if one is not primary)
    exit_code, [line, _] = await check(server, url_of(replica), tmp_path)
    assert line == "FAILED   redis: is a replica, which takes no claims"
    exit_code, [line] = await check(
        server, f"redis+cluster://:{PASSWORD}@127.0.0.1:{primary.port}", tmp_path
    )
    assert line.startswith("FAILED   redis: does not answer: ")
    assert exit_code == 1
