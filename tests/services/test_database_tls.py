"""TLS to the database: what each `sslmode` does, and what `verify-full` refuses."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import asyncpg
import pytest

from app.commands.check_database import check_connection
from app.commands.report import Report
from app.dev.processes import ENVIRONMENT, Server
from app.dev.programs import Programs
from bench.testbed.process import as_nobody
from sinks.timescale import hosts
from sinks.timescale.inspection import Wire
from tests.deploying import commands, lines, statements
from tests.gateways import Services, environment
from tests.outcomes import COMMITTED, callbacks, outcome, serving, until_told
from tests.postgres_topologies import HYPERTABLE, Maker, making, tell
from tests.services.test_commands import run

TLS, CLIENT = "TLS to the database", "A client certificate in place of a password"
ROLE = "flokit_gateway"
GRANTS = (
    f"CREATE ROLE {ROLE} LOGIN PASSWORD 'change-me'",
    f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {ROLE}",
)


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory, postgres_programs: Programs) -> Iterator[Maker]:
    """What starts the server."""
    with making(tmp_path_factory.mktemp("tls"), postgres_programs) as maker:
        yield maker


def typed(folder: Path, line: str, **words: str) -> None:
    """Type a line of the page, as the account of the servers."""
    environ = dict(ENVIRONMENT) | words
    shell = as_nobody(["/bin/sh", "-c", line])
    subprocess.run(shell, env=environ, cwd=folder, capture_output=True, check=True, timeout=60)


def rules(server: Server, *added: str) -> None:
    """Let these rules of the page come first on a server, for this machine."""
    path = server.folder / "pg_hba.conf"
    own = re.sub(rf"(?m)^.* {ROLE} .*\n", "", path.read_text())
    # The server's own rules let everybody in.
    here = [*added, f"host  all  {ROLE}  10.0.0.0/24  reject"] if added else []
    text = "".join(f"{rule}\n" for rule in here).replace("10.0.0.0/24", "127.0.0.1/32")
    path.write_text(f"{text}{own}")


async def block(server: Server, sql: str) -> None:
    """Run a block of the page statement by statement."""
    await tell(server, *filter(str.strip, sql.split(";")))


@pytest.fixture(scope="module")
def server(maker: Maker) -> Server:
    """A server with the page's CA, a certificate for this machine, and no TLS so far."""
    server = maker.primary("alone")
    asyncio.run(tell(server, *GRANTS))
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
    await tell(server, "ALTER SYSTEM RESET ssl", "SELECT pg_reload_conf()")


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
    """What `check` says of the connection, or why there is none."""
    ended = await asyncio.to_thread(run, "check", **environment(url, services.redis_url, folder))
    found = re.findall(r"^\S+ +database(?: connection)?: (.*)$", ended.stdout, re.MULTILINE)
    return str(found[0]).removesuffix("; it does not leave this machine")


async def test_page_makes_a_verified_connection(
    encrypted: Server, services: Services, tmp_path: Path
) -> None:
    """Typed in as it stands, the page makes a connection that `check` calls verified."""
    for host in ("127.0.0.1", "localhost"):
        url = url_of_page(encrypted, host=host)
        assert await told(url, services, tmp_path) == "TLS 1.3, certificate verified"
        with serving(url, services.redis_url, tmp_path) as gateway:
            gateway.wait_until_ready()
            assert await until_told(gateway, callbacks(f"tls-{host}")["stable"]) in COMMITTED
    refused = url.replace("verify-full", "disable")
    assert "pg_hba.conf rejects connection" in await told(refused, services, tmp_path)


# What `check` says of each `sslmode`, where the server has TLS and where it has none.
UNVERIFIED, PLAIN = "TLS 1.3, certificate not verified", "not encrypted"
NO_TLS = "rejected SSL upgrade"
CHAIN = "TLS 1.3, certificate verified, its host name not"
VERIFIED = "TLS 1.3, certificate verified"
MODES = {
    "": (UNVERIFIED, PLAIN),
    "sslmode=disable": (PLAIN, PLAIN),
    "sslmode=allow": (PLAIN, PLAIN),
    "sslmode=prefer": (UNVERIFIED, PLAIN),
    "sslmode=require": (UNVERIFIED, NO_TLS),
    "sslmode=require&sslrootcert={ca}": (CHAIN, NO_TLS),
    "sslmode=verify-ca&sslrootcert={ca}": (CHAIN, NO_TLS),
    "sslmode=verify-full&sslrootcert={ca}": (VERIFIED, NO_TLS),
    "sslmode=verify-full": ("is not asked: without sslrootcert",) * 2,
    "sslmode=verify-full&sslrootcert=system": ("is not asked: a file of its address is not",) * 2,
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("has_tls", [True, False])
async def test_each_sslmode_is_told(
    encrypted: Server, services: Services, tmp_path: Path, mode: str, has_tls: bool
) -> None:
    """`check` says what became of each `sslmode`: encrypted or not, and what was verified."""
    with_tls, without = MODES[mode]
    rules(encrypted)  # `host`, whether with TLS or without
    await tell(encrypted, f"ALTER SYSTEM SET ssl = {has_tls}", "SELECT pg_reload_conf()")
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
    """A server that is not the right one gets no events; `check` says why, the answer is 500."""
    if place:
        install(encrypted, place)
    on = "on" if place else "off"
    await tell(encrypted, f"ALTER SYSTEM SET ssl = {on}", "SELECT pg_reload_conf()")
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
        await tell(encrypted, "ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
        assert await until_told(gateway, callback) in COMMITTED


async def test_client_certificate_of_the_page(
    encrypted: Server, services: Services, tmp_path: Path
) -> None:
    """A gateway logs in by its certificate; without one, and with another CA's, it does not."""
    for line in commands(CLIENT):
        typed(encrypted.folder.parent, line)
    await block(encrypted, statements(CLIENT)[0])
    rules(encrypted, lines(CLIENT)[0])
    await tell(encrypted, "SELECT pg_reload_conf()")
    url = url_of_page(encrypted, CLIENT)
    assert await told(url, services, tmp_path) == VERIFIED
    with serving(url, services.redis_url, tmp_path) as gateway:
        gateway.wait_until_ready()
        assert await until_told(gateway, callbacks("client")["usual"]) in COMMITTED
    without = re.sub("&sslcert.*", "", url)
    assert "requires a valid client certificate" in await told(without, services, tmp_path)


REMOTE = {
    "not encrypted": Wire(is_local=False),
    "TLS 1.3, certificate not verified": Wire(is_local=False, tls="TLS 1.3"),
}


@pytest.mark.parametrize("text", REMOTE)
def test_other_machine_is_warned_of(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What may be read along, or be another server, is a warning; on this machine it is not."""
    check_connection(Report(), REMOTE[text])
    check_connection(Report(), REMOTE[text]._replace(is_local=True))
    remote, local = capsys.readouterr().out.splitlines()
    assert remote.startswith(f"warning  database connection: {text}: see ")
    assert local.startswith(f"ok       database connection: {text}; ")


VERIFIED_WIRES: Mapping[str, Wire] = {
    CHAIN: Wire(is_local=False, tls="TLS 1.3", is_verified=True),
    VERIFIED: Wire(is_local=False, tls="TLS 1.3", is_verified=True, is_host_verified=True),
}


@pytest.mark.parametrize("text", VERIFIED_WIRES)
def test_verified_machine_is_ok(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A verified certificate is no warning."""
    check_connection(Report(), VERIFIED_WIRES[text])
    assert capsys.readouterr().out == f"ok       database connection: {text}\n"
