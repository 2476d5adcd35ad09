"""The password of the database changes under a running gateway: no answered event is lost."""

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dev.processes import Server
from bench.testbed.process import inherited
from bench.topologies.maker import Maker
from bench.topologies.servers import HYPERTABLE, execute, fetch_value
from tests.deploying import commands, lines, statements
from tests.gateways import Process, Services, environment
from tests.outcomes import COMMITTED, Callers, callbacks, outcome, serving, until_told
from tests.services.test_commands import run

FILE, CHANGE = "A password file", "Changing the password"
ROLE, OLD, NEW = "flokit_gateway", "the old:one", "the-new-one"
COUNT = "SELECT count(*) FROM events WHERE user_id = ANY($1)"
END = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'flokit_gateway%'"


@pytest.fixture(scope="module")
def running(maker: Maker) -> Server:
    """A server on which the gateway has a role of its own."""
    server = maker.primary("alone")
    grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}"
    asyncio.run(execute(server, f"CREATE ROLE {ROLE}", grant))
    return server


@pytest.fixture
async def server(running: Server) -> Server:
    """The same, with the old password and no other role."""
    await execute(
        running, f"DROP ROLE IF EXISTS {ROLE}_2", f"ALTER ROLE {ROLE} LOGIN PASSWORD '{OLD}'"
    )
    return running


def typed(line: str, folder: Path, **words: str) -> None:
    """Type a line of the page, with a folder of the test's own in the place of /etc/flokit."""
    here = line.replace("/etc/flokit", str(folder)).replace(":flokit:", f":{HYPERTABLE}:")
    subprocess.run(["/bin/sh", "-c", here], env=inherited() | words, check=True, timeout=60)


def url_of_page(server: Server, folder: Path) -> str:
    """The page's address without a password, of this server."""
    [url] = lines(FILE)
    url = url.replace("db.example:5432", f"127.0.0.1:{server.port}")
    return url.replace("/etc/flokit", str(folder)).replace("/flokit?", f"/{HYPERTABLE}?")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder with the page's password file."""
    folder = tmp_path / "etc"
    folder.mkdir()
    typed(commands(FILE)[0], folder, PASSWORD=OLD)
    return folder


@pytest.fixture
def gateway(server: Server, services: Services, tmp_path: Path, folder: Path) -> Iterator[Process]:
    """A gateway that uses the file."""
    with serving(url_of_page(server, folder), services.redis_url, tmp_path) as gateway:
        gateway.wait_until_ready()
        yield gateway


async def assert_nothing_lost(server: Server, callers: Callers) -> None:
    """Fail unless each callback was answered as committed, and has one row."""
    assert set(callers.told.values()) <= COMMITTED
    assert await fetch_value(server, COUNT, list(callers.told)) == len(callers.told)


async def test_password_changes_while_callbacks_go_on(
    server: Server, gateway: Process, folder: Path
) -> None:
    """In the page's order no callback fails; the next connection has the new password."""
    write, swap = commands(CHANGE)
    alter, *_ = statements(CHANGE)
    callers = Callers(gateway, "rotated")
    failed = "flokit_callbacks_failed_total"
    async with callers.calling():
        typed(write, folder, NEW=NEW)
        await execute(server, alter)
        await callers.more()
        typed(swap, folder)
        await callers.more()
        metrics = await gateway.metrics()
        assert sum(value for name, value in metrics.items() if name.startswith(failed)) == 0
        await execute(server, END)
        await callers.more()
    await assert_nothing_lost(server, callers)
    assert oct((folder / "pgpass").stat().st_mode)[-3:] == "600"


async def test_lost_connection_costs_500s_until_the_file_is_swapped(
    server: Server, gateway: Process, folder: Path
) -> None:
    """Between role and file a lost connection costs 500s, which end when the file is there."""
    write, swap = commands(CHANGE)
    alter, *_ = statements(CHANGE)
    [callback, other] = callbacks("between").values()
    typed(write, folder, NEW=NEW)
    await execute(server, alter, END)
    for _ in range(3):
        assert await outcome(gateway, callback) == "500"
    assert await outcome(gateway, other) == "500"
    typed(swap, folder)
    assert await until_told(gateway, callback) in COMMITTED
    assert await until_told(gateway, other) in COMMITTED
    assert NEW not in gateway.log.read_text()


async def test_two_roles_take_turns(
    server: Server, services: Services, tmp_path: Path, folder: Path, gateway: Process
) -> None:
    """Gateways of both roles write at once, and the first role's log-in can be taken away then."""
    _, create, end = statements(CHANGE)
    await execute(server, create)
    url = url_of_page(server, folder).partition("?")[0]
    second = url.replace(f"{ROLE}@", f"{ROLE}_2:{NEW}@")
    ended = await asyncio.to_thread(
        run, "check", **environment(second, services.redis_url, tmp_path)
    )
    assert "FAILED   schema" not in ended.stdout
    with serving(second, services.redis_url, tmp_path) as other:
        other.wait_until_ready()
        callers = Callers(other, "second-role")
        async with callers.calling():
            await until_told(gateway, callbacks("first-role")["stable"])
            await execute(server, end, END)
            await callers.more()
        await assert_nothing_lost(server, callers)
        twin = callbacks("first-role")["stable"]
        assert await outcome(gateway, {**twin, "user_id": "nobody"}) == "500"
        assert await until_told(other, twin) == "duplicate"


async def test_file_that_others_may_read_is_ignored(
    server: Server, services: Services, tmp_path: Path, folder: Path
) -> None:
    """The driver ignores the file, and logs it; `check` fails without a traceback."""
    (folder / "pgpass").chmod(0o640)
    url = url_of_page(server, folder)
    ended = await asyncio.to_thread(run, "check", **environment(url, services.redis_url, tmp_path))
    assert re.search("FAILED   database: does not answer: .*password", ended.stdout), ended.stdout
    assert "has group or world access" in ended.stderr
    with serving(url, services.redis_url, tmp_path) as gateway:
        gateway.wait_until_alive()
        assert await outcome(gateway, callbacks("ignored")["usual"]) == "500"
        log = gateway.log.read_text().splitlines()
    assert [line for line in log if line.startswith("{") and "group or world access" in line]
    assert all(line.startswith("{") for line in log)


async def test_password_file_is_named_by_the_environment(
    server: Server, services: Services, tmp_path: Path, folder: Path
) -> None:
    """PGPASSFILE has the effect of `passfile`."""
    url = url_of_page(server, folder).partition("?")[0]
    file = {"PGPASSFILE": str(folder / "pgpass")}
    with serving(url, services.redis_url, tmp_path, **file) as gateway:
        gateway.wait_until_ready()
        assert await until_told(gateway, callbacks("environment")["usual"]) in COMMITTED
