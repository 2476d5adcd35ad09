"""The documented Patroni cluster loses its primary: both routes lead to the promoted standby."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.dev.embedded import EmbeddedError
from app.dev.programs import Programs
from bench.topologies.node import Node, find_executables
from bench.topologies.patroni import Cluster, open_cluster, proxied
from tests.gateways import Services, environment
from tests.outcomes import Callers, serving
from tests.services.test_commands import run

# As documented, but for a quicker start on a busy machine.
HASTY = "bootstrap: {dcs: {loop_wait: 1, postgresql: {parameters: {fsync: 'off'}}}}"


@pytest.fixture
async def cluster(tmp_path: Path, postgres_programs: Programs) -> AsyncIterator[Cluster]:
    """Three servers under Patroni, one of them a synchronous standby."""
    try:
        executables = find_executables(postgres_programs)
    except EmbeddedError as why:
        pytest.skip(str(why))
    folder = tmp_path / "cluster"
    folder.mkdir()
    async with open_cluster(folder, executables, overrides=HASTY) as cluster:
        yield cluster


async def assert_check_finds_nothing(url: str, services: Services, folder: Path) -> None:
    """Fail unless `check` warns of nothing but the settings of HASTY."""
    ended = await asyncio.to_thread(run, "check", **environment(url, services.redis_url, folder))
    lines = ended.stdout.splitlines()
    found = [line for line in lines if not line.startswith("ok ") and "fsync" not in line]
    assert found == [], ended.stdout
    assert [line.split(":")[0] for line in lines if "confirmed" in line] == [
        "ok       database setting synchronous_standby_names"
    ]


async def rows_of(cluster: Cluster, leader: Node, callers: Callers) -> list[str]:
    """The users of the rows of some callers, each as often as it has rows."""
    async with cluster.connected(leader) as connection:
        found = await connection.fetch(
            "SELECT user_id FROM events WHERE user_id LIKE $1 || '-%' ORDER BY user_id",
            callers.prefix,
        )
    return [record["user_id"] for record in found]


async def test_gateways_follow_the_primary_on_both_routes(
    cluster: Cluster, services: Services, tmp_path: Path, haproxy_program: Path
) -> None:
    """A machine is lost under load: through HAProxy and by several hosts, nothing is lost."""
    leader = await cluster.until_leader()
    with ExitStack() as stack:
        proxy = stack.enter_context(proxied(cluster, haproxy_program))
        await asyncio.to_thread(proxy.wait_until, leader.name, "UP")
        routes = {"proxy": cluster.url_at(proxy.port), "hosts": cluster.url_of()}
        await assert_check_finds_nothing(routes["proxy"], services, tmp_path)
        gateways = {
            name: stack.enter_context(serving(url, services.redis_url, tmp_path))
            for name, url in routes.items()
        }
        callers = {name: Callers(gateway, name) for name, gateway in gateways.items()}
        for gateway in gateways.values():
            await asyncio.to_thread(gateway.wait_until_ready)
        async with callers["proxy"].calling(), callers["hosts"].calling():
            await asyncio.to_thread(leader.kill)
            await asyncio.to_thread(cluster.fence)
            promoted = await cluster.until_leader()
            assert promoted is not leader
            await asyncio.gather(*(each.more() for each in callers.values()))
        for each in callers.values():
            assert await rows_of(cluster, promoted, each) == sorted(each.told)
