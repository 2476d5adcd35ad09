"""A standby is promoted: gateways find the primary, among several hosts and behind HAProxy."""

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from bench.testbed.haproxy import DATABASE, HAProxy, haproxy
from bench.testbed.ports import free_port
from bench.testbed.process import PATIENCE_S, POLL_S
from bench.testbed.proxy import Proxy
from bench.topologies.pair import Pair
from bench.topologies.servers import (
    ALONE,
    execute,
    fetch_value,
    superuser_connection,
    url_at,
    url_of,
)
from sinks.timescale.hosts import connected
from sinks.timescale.inspection import is_direct
from sinks.timescale.standbys import Slot, replication
from tests.deploying import lines, statements
from tests.gateways import Process, Services, environment
from tests.outcomes import COMMITTED, Callers, callbacks, outcome, serving, until_told
from tests.services.test_commands import run

HASTY = {"COMMIT_TIMEOUT_S": "1", "CLAIM_LEASE_S": "2"}
READ_WRITE = "?target_session_attrs=read-write"
# From the fault to the next answer; the promotion itself takes a fraction of a second.
GAP_MAX_S = 15.0


@contextmanager
def silent() -> Iterator[int]:
    """A port that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@contextmanager
def standby(pair: Pair) -> Iterator[int]:
    """The port of a standby."""
    yield pair.standby.port


@contextmanager
def hanging(pair: Pair) -> Iterator[int]:
    """The port of a server that stands still."""
    pair.standby.pause()
    yield pair.standby.port
    pair.standby.resume()


@contextmanager
def refused() -> Iterator[int]:
    """A port without a listener."""
    yield free_port()


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("standby", ""),
        ("standby", READ_WRITE),
        ("hanging", READ_WRITE),
        ("silent", ""),
        ("refused", ""),
    ],
)
async def test_primary_is_found_behind_another(
    pair: Pair, services: Services, tmp_path: Path, first: str, words: str
) -> None:
    """The primary gets the events, behind any host that is none."""
    await execute(pair.primary, *ALONE)
    others: dict[str, AbstractContextManager[int]] = {
        "standby": standby(pair),
        "hanging": hanging(pair),
        "silent": silent(),
        "refused": refused(),
    }
    with others[first] as port:
        url = url_at(port, pair.primary.port, words=words)
        with serving(url, services.redis_url, tmp_path) as gateway:
            await asyncio.to_thread(gateway.wait_until_ready)
            for kind, callback in callbacks(f"behind-{first}{len(words)}").items():
                assert await until_told(gateway, callback) in COMMITTED, kind


@pytest.mark.parametrize("command", ["migrate", "retain", "check"])
async def test_commands_find_the_primary(
    pair: Pair, services: Services, tmp_path: Path, command: str
) -> None:
    """A command works on the primary, behind a host that hangs and a standby."""
    with silent() as port:
        url = url_at(port, pair.standby.port, pair.primary.port, words=READ_WRITE)
        environ = environment(url, services.redis_url, tmp_path, RETENTION_D="62")
        ended = await asyncio.to_thread(run, command, **environ)
        assert ended.stderr == ""
        failed = [line for line in ended.stdout.splitlines() if line.startswith("FAILED")]
        assert [line for line in failed if "fsync" not in line] == []
        assert ended.returncode == len(failed)


async def test_check_names_each_host(pair: Pair, services: Services, tmp_path: Path) -> None:
    """`check` on a primary also reports the state of every other host."""
    with refused() as port:
        url = url_at(port, pair.standby.port, pair.primary.port, pair.primary.port)
        environ = environment(url, services.redis_url, tmp_path)
        ended = await asyncio.to_thread(run, "check", **environ)
    told = [line for line in ended.stdout.splitlines() if " database host: " in line]
    away, *others, warning = told
    assert away.startswith(f"warning  database host: 127.0.0.1:{port} does not answer: ")
    primary = f"ok       database host: 127.0.0.1:{pair.primary.port} is a primary"
    standby = f"ok       database host: 127.0.0.1:{pair.standby.port} is a standby"
    assert others == [standby, primary, primary]
    assert warning.startswith("warning  database host: 2 are primaries: ")


async def test_check_names_no_host_where_there_is_only_one(
    pair: Pair, services: Services, tmp_path: Path
) -> None:
    """A single host has no line of its own, but for one that is no way to the next primary."""
    environ = environment(url_of(pair.primary), services.redis_url, tmp_path)
    ended = await asyncio.to_thread(run, "check", **environ)
    assert "database host" not in ended.stdout
    assert "warning  DATABASE_URL: one host, the server itself" in ended.stdout
    standby = f"warning  database standbys: {pair.standby.name} streaming sync: without "
    assert standby in ended.stdout


async def test_proxy_on_the_port_of_the_server_is_not_the_server(pair: Pair) -> None:
    """An address is direct only if it is the server's own, also where a proxy has its port."""
    proxy = Proxy(pair.primary.port, host="127.0.0.2")
    proxy.port = pair.primary.port
    await proxy.open()
    try:
        url = url_of(pair.primary)
        for address, expected in ((url, True), (url.replace("@127.0.0.1:", "@127.0.0.2:"), False)):
            async with connected(address, timeout_s=PATIENCE_S) as connection:
                assert await is_direct(connection) is expected
    finally:
        proxy.close()


async def test_slot_that_was_never_used_is_not_lost(pair: Pair) -> None:
    """A slot has no state before its standby has used it for the first time."""
    async with superuser_connection(pair.primary) as connection:
        await connection.execute("SELECT pg_create_physical_replication_slot('unused')")
        try:
            found = await replication(connection)
        finally:
            await connection.execute("SELECT pg_drop_replication_slot('unused')")
    assert Slot("unused", True, None, 0.0) in found.slots


async def test_unprivileged_role_reads_only_the_names_of_standbys(pair: Pair) -> None:
    """Without pg_monitor the states of standbys are unknown, and not reported as missing."""
    await execute(pair.primary, "DROP ROLE IF EXISTS plain", "CREATE ROLE plain")
    async with superuser_connection(pair.primary) as connection:
        await connection.execute("SET ROLE plain")
        found = await replication(connection)
    assert not found.is_readable
    assert found.needed == 1
    assert [(each.name, each.state) for each in found.standbys] == [(pair.standby.name, None)]


@pytest.mark.parametrize("words", ["", READ_WRITE])
async def test_serve_waits_for_the_promotion_of_a_standby(
    pair: Pair, services: Services, tmp_path: Path, words: str
) -> None:
    """Where only a standby answers, `serve` is there, answers 500, and waits for its promotion."""
    url = url_at(free_port(), pair.standby.port, words=words)
    [callback, _] = callbacks(f"only-standbys{len(words)}").values()
    with serving(url, services.redis_url, tmp_path) as gateway:
        async with asyncio.timeout(PATIENCE_S):
            while gateway.status("/healthz") != 200:
                await asyncio.sleep(POLL_S)
        assert gateway.status("/readyz") == 503
        assert await outcome(gateway, callback) == "500"
        pair.primary.kill()
        await pair.promote()
        assert await until_told(gateway, callback) in COMMITTED
        assert "Traceback" not in gateway.log.read_text()


async def test_promoted_server_without_a_standby_confirms_nothing(
    pair: Pair, services: Services, tmp_path: Path
) -> None:
    """A promoted server with the copied setting confirms no commit; `check` reports the reason."""
    pair.primary.kill()
    await pair.promote_as_it_is()
    url = url_of(pair.primary)
    environ = environment(url, services.redis_url, tmp_path)
    ended = await asyncio.to_thread(run, "check", **environ)
    failed = [line for line in ended.stdout.splitlines() if line.startswith("FAILED")]
    assert ended.returncode == 1
    assert any("synchronous" in line for line in failed), ended.stdout
    [callback, _] = callbacks("promoted-alone").values()
    with serving(url, services.redis_url, tmp_path, **HASTY) as gateway:
        gateway.wait_until_ready()
        assert await outcome(gateway, callback) == "500"
        alone = statements("A synchronous standby")[-1]
        async with superuser_connection(pair.primary) as connection:
            for statement in filter(str.strip, alone.split(";")):
                await connection.execute(statement)
        assert await until_told(gateway, callback) in COMMITTED
    ended = await asyncio.to_thread(run, "check", **environ)
    assert not any("synchronous" in line for line in ended.stdout.splitlines() if "FAIL" in line)


async def test_old_primary_confirms_nothing(pair: Pair, services: Services, tmp_path: Path) -> None:
    """A primary that comes back after a promotion waits for the standby that it has lost."""
    pair.primary.pause()
    await pair.promote()
    old = pair.standby
    old.resume()
    with serving(url_of(old), services.redis_url, tmp_path, **HASTY) as gateway:
        gateway.wait_until_ready()
        for callback in callbacks("old-primary").values():
            assert {await outcome(gateway, callback) for _ in range(2)} == {"500"}


async def fail_over(pair: Pair, fault: str) -> None:
    """Lose the primary, and promote the standby; the old one does not answer again."""
    if fault == "killed":
        pair.primary.kill()
    else:
        pair.primary.pause()
    await pair.promote()


async def assert_fail_over_loses_nothing(
    pair: Pair, gateway: Process, name: str, fault: str
) -> None:
    """Fail over under load: each callback has one row, after a bounded time, which is printed."""
    await asyncio.to_thread(gateway.wait_until_ready)
    callers = Callers(gateway, name)
    async with callers.calling():
        await fail_over(pair, fault)
        await callers.more()
    rows = await fetch_value(
        pair.primary,
        "SELECT array_agg(user_id ORDER BY user_id) FROM events WHERE user_id LIKE $1 || '-%'",
        callers.prefix,
    )
    assert rows == sorted(callers.told)
    gap_s = callers.longest_gap_s()
    sys.stdout.write(f"{name}: {len(rows)} callbacks, longest gap {gap_s:.1f} s\n")
    assert gap_s < GAP_MAX_S


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_gateway_finds_the_promoted_host(
    pair: Pair, services: Services, tmp_path: Path, fault: str
) -> None:
    """A gateway with several hosts finds the promoted one, and no answered event is lost."""
    url = url_of(pair.primary, pair.standby)
    with serving(url, services.redis_url, tmp_path) as gateway:
        await assert_fail_over_loses_nothing(pair, gateway, f"hosts-{fault}", fault)


@pytest.fixture
async def proxy(pair: Pair, tmp_path: Path, haproxy_program: Path) -> AsyncIterator[HAProxy]:
    """HAProxy in front of both servers, with the documented configuration."""
    [role] = statements("HAProxy by role")
    [rule] = [line for line in lines("HAProxy by role") if line.startswith("host")]
    if not await fetch_value(
        pair.primary, "SELECT count(*) FROM pg_roles WHERE rolname = 'haproxy'"
    ):
        async with superuser_connection(pair.primary) as connection:
            await connection.execute(role)
    servers = (pair.primary, pair.standby)
    for server in servers:
        rules = server.folder / "pg_hba.conf"
        here = rule.replace("10.0.0.9/32", "127.0.0.1/32")
        rules.write_text(f"{here}\n{rules.read_text()}")
        await execute(server, "SELECT pg_reload_conf()")
    ports = {server.name: server.port for server in servers}
    with haproxy(tmp_path, ports, haproxy_program, DATABASE) as proxy:
        await asyncio.to_thread(proxy.wait_until, pair.primary.name, "UP")
        await asyncio.to_thread(proxy.wait_until, pair.standby.name, "DOWN")
        yield proxy


@pytest.mark.parametrize("fault", ["killed", "frozen"])
async def test_haproxy_leads_to_the_promoted_server(
    pair: Pair, proxy: HAProxy, services: Services, tmp_path: Path, fault: str
) -> None:
    """HAProxy leads a gateway to the promoted server, and no answered event is lost."""
    with serving(url_of(proxy), services.redis_url, tmp_path) as gateway:
        await assert_fail_over_loses_nothing(pair, gateway, f"haproxy-{fault}", fault)
