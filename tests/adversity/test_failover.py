"""The documented Patroni cluster loses its primary: both routes lead to the promoted standby."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from app.dev.embedded import EmbeddedError
from app.dev.programs import Programs
from bench.testbed.haproxy import HAProxy
from bench.topologies.node import find_executables
from bench.topologies.patroni import Cluster, open_cluster, proxied
from bench.topologies.servers import until, url_of
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


STANDBYS = re.compile(
    r"^ok +database standbys: \w+ streaming quorum, \w+ streaming quorum$", re.MULTILINE
)
CONFIRMED = re.compile(
    r"^ok +database setting synchronous_standby_names: ANY 1 .*: a commit was confirmed",
    re.MULTILINE,
)


async def until_check_finds_standbys(url: str, services: Services, folder: Path) -> None:
    """Return when `check` reports both standbys, and a commit that one of them confirmed."""
    environ = environment(url, services.redis_url, folder)

    async def has_found() -> bool:
        ended = await asyncio.to_thread(run, "check", **environ)
        sys.stdout.write(ended.stdout)
        return all(pattern.search(ended.stdout) for pattern in (STANDBYS, CONFIRMED))

    await until(has_found)


async def until_routed(proxy: HAProxy) -> None:
    """Return when HAProxy has checked every server, and found one primary."""

    async def is_routed() -> bool:
        states = await asyncio.to_thread(proxy.states)
        return sorted(states.values()) == ["DOWN", "DOWN", "UP"]

    await until(is_routed)


async def rows_of(cluster: Cluster, callers: Callers) -> list[str]:
    """The users of the rows of some callers, each as often as it has rows."""
    async with cluster.connected() as connection:
        found = await connection.fetch(
            "SELECT user_id FROM events WHERE user_id LIKE $1 || '-%' ORDER BY user_id",
            callers.prefix,
        )
    return [record["user_id"] for record in found]


async def test_gateways_follow_the_primary_on_both_routes(
    cluster: Cluster, services: Services, tmp_path: Path, haproxy_program: Path
) -> None:
    """A machine is lost under load: through HAProxy and by several hosts, nothing is lost."""
    with ExitStack() as stack:
        proxy = stack.enter_context(proxied(cluster, haproxy_program))
        await until_routed(proxy)
        routes = {"proxy": url_of(proxy), "hosts": cluster.url}
        await until_check_finds_standbys(routes["proxy"], services, tmp_path)
        gateways = {
            name: stack.enter_context(serving(url, services.redis_url, tmp_path))
            for name, url in routes.items()
        }
        callers = {name: Callers(gateway, name) for name, gateway in gateways.items()}
        for gateway in gateways.values():
            await asyncio.to_thread(gateway.wait_until_ready)
        async with callers["proxy"].calling(), callers["hosts"].calling():
            former = await cluster.until_whole()
            await asyncio.to_thread(former.kill)
            await asyncio.to_thread(cluster.fence)
            promoted = await cluster.until_leader()
            assert promoted is not former
            await asyncio.gather(*(each.more() for each in callers.values()))
        for each in callers.values():
            rows = await until(partial(rows_of, cluster, each))
            assert rows == sorted(each.told)
