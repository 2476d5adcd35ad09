"""TLS to the database: the effect of each `sslmode`, and the servers that `verify-full` refuses."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest

from app.dev.processes import ENVIRONMENT, Server
from bench.testbed.process import as_nobody
from bench.topologies.maker import Maker
from bench.topologies.servers import HYPERTABLE, execute
from sinks.timescale import hosts
from tests.deploying import commands, lines, statements
from tests.gateways import Services, environment
from tests.outcomes import COMMITTED, callbacks, outcome, serving, until_told
from tests.services.test_commands import run
from tests.unit.test_check_connection import CHAIN, VERIFIED

TLS, CLIENT = "TLS to the database", "Client certificates"
ROLE = "flokit_gateway"
GRANTS = (
    f"CREATE ROLE {ROLE} LOGIN PASSWORD 'change-me'",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}",
)


def typed(folder: Path, line: str, **words: str) -> None:
    """Type a line of the page, as the account of the servers."""
    environ = dict(ENVIRONMENT) | words
    shell = as_nobody(["/bin/sh", "-c", line])
    subprocess.run(shell, env=environ, cwd=folder, capture_output=True, check=True, timeout=60)


def rules(server: Server, *added: str) -> None:
    """Let these rules of the page come first on a server, for this machine."""
    path = server.folder / "pg_hba.conf"
    own = re.sub(rf"(?m)^.* {ROLE} .*\n", "", path.read_text())
    # The server's own rules let every role in.
    here = [*added, f"host  all  {ROLE}  10.0.0.0/24  reject"] if added else []
    text = "".join(f"{rule}\n" for rule in here).replace("10.0.0.0/24", "127.0.0.1/32")
    path.write_text(f"{text}{own}")


async def block(server: Server, sql: str) -> None:
    """Run a block of the page statement by statement."""
    await execute(server, *filter(str.strip, sql.split(";")))


@pytest.fixture(scope="module")
def server(maker: Maker) -> Server:
    """A server with the page's CA, a certificate for this machine, and no TLS so far."""
    server = maker.primary("alone")
    asyncio.run(execute(server, *GRANTS))
    folder = maker.folder
    *make, _ = commands(TLS)
    for line in make:
        typed(folder, line, HOST="localhost", ADDRESS="127.0.0.1")
    install(server)
    # Certificates that do not fit: of another CA, and for another host.
    for place in ("other-ca", "other-host"):
        typed(folder, f"mkdir {place}")
    for line in make:
        typed(folder / "other-ca", line, HOST="localhost", ADDRESS="127.0.0.1")
    typed(folder, "cp ca.key ca.crt other-host")
    for line in make[1:]:
        typed(folder / "other-host", line, HOST="db.example", ADDRESS="10.0.0.1")
    return server


@pytest.fixture
async def encrypted(server: Server) -> AsyncIterator[Server]:
    """The server with TLS as the page turns it on, and its rule."""
    [turn_on] = statements(TLS)
    rules(server, lines(TLS)[0])
    await block(server, turn_on)
    yield server
    install(server)
    rules(server)
    await execute(server, "ALTER SYSTEM RESET ssl", "SELECT pg_reload_conf()")


def install(server: Server, place: str = "") -> None:
    """Give a server a certificate, as the page does: the right one, or one of another place."""
    typed(server.folder.parent / place, commands(TLS)[-1], PGDATA=str(server.folder))


def url_of_page(server: Server, heading: str = TLS, host: str = "127.0.0.1") -> str:
    """The page's address, of this server and with the files that were made."""
    url = lines(heading)[-1].replace("db.example:5432", f"{host}:{server.port}")
    return url.replace("/etc/flokit", str(server.folder.parent)).replace(
        "/flokit?", f"/{HYPERTABLE}?"
    )


async def told(url: str, services: Services, folder: Path) -> str:
    """The line of `check` about the connection, or the reason why there is none."""
    ended = await asyncio.to_thread(run, "check", **environment(url, services.redis_url, folder))
    found = re.findall(r"^\S+ +database(?: connection)?: (.*)$", ended.stdout, re.MULTILINE)
    return str(found[0]).removesuffix("; it does not leave this machine")


async def test_page_makes_a_verified_connection(
    encrypted: Server, services: Services, tmp_path: Path
) -> None:
    """Typed in as it stands, the page makes a connection that `check` reports as verified."""
    for host in ("127.0.0.1", "localhost"):
        url = url_of_page(encrypted, host=host)
        assert await told(url, services, tmp_path) == "TLS 1.3, certificate verified"
        with serving(url, services.redis_url, tmp_path) as gateway:
            gateway.wait_until_ready()
            assert await until_told(gateway, callbacks(f"tls-{host}")["stable"]) in COMMITTED
    refused = url.replace("verify-full", "disable")
    assert "pg_hba.conf rejects connection" in await told(refused, services, tmp_path)


# The line of `check` about each `sslmode`, where the server has TLS and where it has none.
UNVERIFIED, PLAIN = "TLS 1.3, certificate not verified", "not encrypted"
NO_TLS = "rejected SSL upgrade"
MODES = {
    "": (UNVERIFIED, PLAIN),
    "sslmode=disable": (PLAIN, PLAIN),
    "sslmode=allow": (PLAIN, PLAIN),
    "sslmode=prefer": (UNVERIFIED, PLAIN),
    "sslmode=require": (UNVERIFIED, NO_TLS),
    "sslmode=require&sslrootcert={ca}": (CHAIN, NO_TLS),
    "sslmode=verify-ca&sslrootcert={ca}": (CHAIN, NO_TLS),
    "sslmode=verify-full&sslrootcert={ca}": (VERIFIED, NO_TLS),
    "sslmode=verify-full": ("is not tried: without sslrootcert",) * 2,
    "sslmode=verify-full&sslrootcert=system": ("is not tried: a file of its address is not",) * 2,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_tls", [True, False])
async def test_check_reports_each_sslmode(
    encrypted: Server, services: Services, tmp_path: Path, mode: str, has_tls: bool
) -> None:
    """`check` reports the effect of each `sslmode`: encrypted or not, and the verification."""
    with_tls, without = MODES[mode]
    rules(encrypted)  # `host`, whether with TLS or without
    await execute(encrypted, f"ALTER SYSTEM SET ssl = {has_tls}", "SELECT pg_reload_conf()")
    url = url_of_page(encrypted).partition("?")[0]
    query = mode.format(ca=encrypted.folder.parent / "ca.crt")
    said = await told(f"{url}?{query}", services, tmp_path)
    expected = with_tls if has_tls else without
    assert said == expected or (expected in said and "TLS 1.3" not in said)


FAULTS = {
    "another CA": ("other-ca", "certificate that is refused: "),
    "another host": ("other-host", "certificate that is refused: IP address mismatch"),
    "no TLS": (None, NO_TLS),
}


@pytest.mark.parametrize(("place", "words"), FAULTS.values(), ids=FAULTS)
async def test_wrong_server_is_refused(
    encrypted: Server, services: Services, tmp_path: Path, place: str | None, words: str
) -> None:
    """A wrong server gets no events; `check` reports the reason, and the answer is 500."""
    if place:
        install(encrypted, place)
    on = "on" if place else "off"
    await execute(encrypted, f"ALTER SYSTEM SET ssl = {on}", "SELECT pg_reload_conf()")
    url = url_of_page(encrypted)
    assert words in await told(url, services, tmp_path)
    with pytest.raises(hosts.NoAnswer, match=words):
        await hosts.open_primary(url, asyncpg.connect, 5.0)
    [callback, _] = callbacks("refused").values()
    with serving(url, services.redis_url, tmp_path) as gateway:
        await asyncio.to_thread(gateway.wait_until_alive)
        assert await outcome(gateway, callback) == "500"
        # The right certificate is back, and the gateway goes on by itself.
        install(encrypted)
        await execute(encrypted, "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
        assert await until_told(gateway, callback) in COMMITTED


async def test_gateway_logs_in_by_its_certificate(
    encrypted: Server, services: Services, tmp_path: Path
) -> None:
    """A gateway logs in by its certificate; without one, and with another CA's, it does not."""
    for line in commands(CLIENT):
        typed(encrypted.folder.parent, line)
    await block(encrypted, statements(CLIENT)[0])
    rules(encrypted, lines(CLIENT)[0])
    await execute(encrypted, "SELECT pg_reload_conf()")
    url = url_of_page(encrypted, CLIENT)
    assert await told(url, services, tmp_path) == VERIFIED
    with serving(url, services.redis_url, tmp_path) as gateway:
        gateway.wait_until_ready()
        assert await until_told(gateway, callbacks("client")["usual"]) in COMMITTED
    without = re.sub("&sslcert.*", "", url)
    assert "requires a valid client certificate" in await told(without, services, tmp_path)
