"""Several hosts in DATABASE_URL: one that hangs, one that is a standby, and none that will do."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from app.dev import embedded
from app.dev.embedded import Embedded
from app.event import Outcome
from sinks.timescale import hosts
from sinks.timescale.errors import AddressError
from sinks.timescale.sink import TimescaleSink
from tests.events import events
from tests.gateways import Process, Services, environment
from tests.services.test_commands import assert_one_line, run


def at(database_url: str, *places: str, query: str = "") -> str:
    """The address with other hosts."""
    parts = urlsplit(database_url)
    netloc = f"{parts.netloc.rpartition('@')[0]}@{','.join(places)}"
    return urlunsplit(parts._replace(netloc=netloc, query=query))


def place_of(database_url: str) -> str:
    """The host and port of an address."""
    return urlsplit(database_url).netloc.rpartition("@")[2]


@pytest.fixture
def silent() -> Iterator[str]:
    """A host that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


NOBODY = "127.0.0.1:1"


@contextmanager
def in_recovery(servers: Embedded) -> Iterator[None]:
    """Let a server be a standby, of a primary that does not exist."""
    signal_file = servers.postgres.folder / "standby.signal"
    servers.postgres.stop()
    signal_file.touch()
    signal_file.chmod(0o666)
    servers.postgres.start()
    try:
        yield
    finally:
        servers.postgres.stop()
        signal_file.unlink()
        servers.postgres.start()


@pytest.fixture(scope="module")
def standby(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server that takes no writes."""
    folder = tmp_path_factory.mktemp("standby")
    with embedded.start(folder, fallback=True) as servers, in_recovery(servers):
        yield servers.database_url


async def open_at(url: str) -> asyncpg.Connection:
    """Open a connection as the product does."""
    return await asyncpg.connect(url, target_session_attrs=hosts.ANY_ROLE)


@pytest.mark.parametrize("form", ["netloc", "query", "query with one port"])
@pytest.mark.parametrize("query", ["", "target_session_attrs=read-write", "connect_timeout=2"])
async def test_second_host_is_reached_when_the_first_hangs(
    database_url: str, silent: str, form: str, query: str
) -> None:
    """The second host is reached soon, in any notation."""
    primary = place_of(database_url)
    if form == "netloc":
        url = at(database_url, silent, primary, query=query)
    else:
        port = primary.rpartition(":")[2]
        address = (
            f"host=192.0.2.1,127.0.0.1&port={port}"
            if form == "query with one port"
            else f"host=127.0.0.1,127.0.0.1&port={silent.rpartition(':')[2]},{port}"
        )
        url = at(database_url, "", query="&".join(filter(None, (address, query))))
    started = time.monotonic()
    connection = await hosts.open_primary(url, open_at, 20.0)
    assert time.monotonic() - started < 10
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.mark.parametrize("first", ["standby", "nobody"])
async def test_gateway_goes_on_to_the_primary(database_url: str, standby: str, first: str) -> None:
    """A gateway goes on to the host that takes writes."""
    other = {"standby": place_of(standby), "nobody": NOBODY}[first]
    if first == "standby":  # with the user and the password of its own
        url = at(standby, other, NOBODY)
        with pytest.raises(hosts.NoAnswer) as raised:
            await hosts.open_primary(url, open_at, 20.0)
        assert raised.value.hosts[0] == f"{other} is a standby"
        assert raised.value.hosts[1].startswith(f"{NOBODY} does not answer: ")
        return
    sink = TimescaleSink(at(database_url, other, place_of(database_url)), commit_timeout_s=10)
    assert await sink.write(events("a")) == [Outcome.WRITTEN]
    await sink.close()


@pytest.mark.parametrize("command", ["migrate", "retain", "check"])
@pytest.mark.parametrize("query", ["", "target_session_attrs=read-write"])
def test_command_names_each_standby(
    services: Services, standby: str, tmp_path: Path, command: str, query: str
) -> None:
    """Each host has its line, and none of them is a traceback."""
    place = place_of(standby)
    url = at(standby, place, place, query=query)
    ended = run(command, **environment(url, services.redis_url, tmp_path, RETENTION_D="400"))
    said = f"{place} is a standby"
    if command == "check":
        assert ended.returncode == 1
        assert ended.stdout.count(f"FAILED   database: {said}\n") == 2
    else:
        assert_one_line(ended, 1, f"database: {said}; {said}\n")


def test_serve_starts_on_a_standby(services: Services, standby: str, tmp_path: Path) -> None:
    """Where only a standby answers, the gateway is there, not ready, and logs the reason."""
    url = at(standby, place_of(standby), query="target_session_attrs=primary")
    with Process(url, services.redis_url, tmp_path) as process:
        deadline = time.monotonic() + 30
        while "is a standby" not in process.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_missing_certificate_is_reported_as_missing(
    services: Services, tmp_path: Path, database_url: str
) -> None:
    """A missing file is not reported as a wrong address, nor as a server that is away."""
    query = f"sslmode=verify-full&sslrootcert={tmp_path}/none.pem"
    url = at(database_url, place_of(database_url), query=query)
    ended = run("migrate", **environment(url, services.redis_url, tmp_path))
    assert_one_line(ended, 1, "database: is not tried: a file of its address is not there")


WRONG = [
    "postgresql://u:hush-hush@a,,b/x",
    "postgresql://u:hush-hush@/x?host=a,b&port=1,2,3",
    "postgresql://u:hush-hush@a/x?connect_timeout=soon",
    "postgresql://u:hush-hush@a:b,c/x",
]


@pytest.mark.parametrize("url", WRONG)
async def test_wrong_address_is_reported_without_its_password(url: str) -> None:
    """An invalid address is reported as such, without its contents."""
    with pytest.raises(AddressError) as raised:
        await hosts.open_primary(url, open_at, 5.0)
    assert "hush" not in str(raised.value)


async def test_password_that_was_not_encoded_is_in_no_message(standby: str) -> None:
    """A part of a password that looks like a host is not reported."""
    url = f"postgresql://u:127.0.0.1,hush/@{place_of(standby)}/x"
    with pytest.raises((hosts.NoAnswer, AddressError)) as raised:
        await hosts.open_primary(url, open_at, 5.0)
    assert "hush" not in str(raised.value).partition("does not answer")[0]


async def test_ipv6_literals_and_unix_sockets_are_hosts(database_url: str) -> None:
    """IPv6 literals and Unix sockets are hosts like others."""
    port = place_of(database_url).rpartition(":")[2]
    for url in (
        at(database_url, "[::1]:1", place_of(database_url)),
        at(database_url, "%2Fnowhere", place_of(database_url)),
        at(database_url, "", query=f"host=/nowhere,127.0.0.1&port={port}"),
    ):
        connection = await hosts.open_primary(url, open_at, 20.0)
        await connection.close()


async def test_slow_hosts_are_given_up(silent: str, database_url: str) -> None:
    """A time-out of the caller leaves no attempt behind."""
    url = at(database_url, silent, silent)
    before = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.6):
            await hosts.open_primary(url, open_at, 20.0)
    assert asyncio.all_tasks() == before
    with pytest.raises(hosts.NoAnswer, match=f"{silent} does not answer: TimeoutError"):
        await hosts.open_primary(url, open_at, 0.2)
