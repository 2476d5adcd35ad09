"""The embedded servers: they answer, they keep their data, and they leave nothing behind."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import asyncpg
import pytest
import redis

from app.dev import embedded
from app.dev import processes as embedded_process
from app.dev import programs as embedded_programs
from app.dev.embedded import Embedded, EmbeddedError, start, unpack
from bench.testbed.process import PATIENCE_S

OWNER = """
import sys, time
from pathlib import Path
from app.dev.embedded import start
with start(Path(sys.argv[1]), fallback=True) as servers:
    print(servers.postgres.pid, servers.redis.pid, servers.database_url, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module", params=["debian", "fallback"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for the servers, named by their kind."""
    return tmp_path_factory.mktemp(request.param) / "servers"


@pytest.fixture(scope="module")
def servers(folder: Path) -> Iterator[Embedded]:
    """Servers of each kind, shared by the tests that leave them running."""
    fallback = folder.parent.name.startswith("fallback")
    with start(folder, fallback=fallback) as servers:
        if not fallback and not servers.has_timescaledb:
            pytest.skip("Debian's packages are not available")
        yield servers


@pytest.fixture(scope="module")
def used_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a table `kept` and a key of that name were left behind."""
    folder = tmp_path_factory.mktemp("used") / "servers"
    with start(folder, fallback=True) as servers:
        query(servers.database_url, "CREATE TABLE kept (value int)")
        with redis.Redis.from_url(servers.redis_url) as client:
            client.set("kept", "1")
    return folder


def query(url: str, statement: str, *, timeout_s: float = 10) -> object:
    """Run one statement on a connection of its own, and return its first value."""

    async def run() -> object:
        connection = await asyncpg.connect(url, timeout=timeout_s)
        try:
            return await connection.fetchval(statement, timeout=timeout_s)
        finally:
            connection.terminate()

    return asyncio.run(run())


def wait_until(happens: Callable[[], bool]) -> None:
    """Poll until something happens, or fail."""
    deadline = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also one that is not yet waited for."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "\nState:\tZ" in status.read_text()


def started_owner(folder: Path) -> tuple[subprocess.Popen[str], list[int], str]:
    """Start the servers in another process; return it, their process IDs, and the database."""
    command = [sys.executable, "-c", OWNER, str(folder)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert owner.stdout is not None
    with owner.stdout:
        postgres, redis_server, url = owner.stdout.readline().split()
    return owner, [int(postgres), int(redis_server)], url


def test_servers_answer(servers: Embedded) -> None:
    """Both answer, and the database is as its description states."""
    assert query(servers.database_url, "SELECT current_database()") == "flokit"
    extension = "SELECT count(*) FROM pg_available_extensions WHERE name = 'timescaledb'"
    assert query(servers.database_url, extension) == int(servers.has_timescaledb)
    assert ("TimescaleDB 2" in servers.description) == servers.has_timescaledb
    with redis.Redis.from_url(servers.redis_url) as client:
        assert client.ping()


def test_database_is_as_durable_as_in_production(servers: Embedded) -> None:
    """Durability, encoding and time zone are those that the gateway relies on."""
    expected = {
        "fsync": "on",
        "synchronous_commit": "on",
        "autovacuum": "on",
        "server_encoding": "UTF8",
        "track_commit_timestamp": "on",
        "TimeZone": "GMT",
    }
    found = {name: query(servers.database_url, f"SHOW {name}") for name in expected}
    assert found == expected
    assert query(servers.database_url, "SELECT upper('é') = 'É'")


def test_servers_require_a_password(servers: Embedded) -> None:
    """Only callers with the password get in, and only by loopback."""
    with pytest.raises(asyncpg.InvalidPasswordError):
        query(f"postgresql://flokit:guess@127.0.0.1:{servers.postgres.port}/flokit", "SELECT 1")
    with (
        redis.Redis.from_url(f"redis://127.0.0.1:{servers.redis.port}", retry=None) as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()
    assert query(servers.database_url, "SHOW listen_addresses") == "127.0.0.1"


def test_second_start_names_the_first(servers: Embedded, folder: Path) -> None:
    """The second start names the process that has the folder, and the first is not disturbed."""
    with (
        pytest.raises(EmbeddedError, match=f"already running as process {os.getpid()} in "),
        start(folder, fallback=True),
    ):
        pass
    assert query(servers.database_url, "SELECT 1") == 1


def test_killed_server_keeps_its_data(servers: Embedded) -> None:
    """A killed PostgreSQL comes back on the same port with all that it had committed."""
    query(servers.database_url, "CREATE TABLE survivors (value int)")
    port, pid = servers.postgres.port, servers.postgres.pid
    servers.postgres.kill()
    with pytest.raises(OSError, match="Connect"):
        query(servers.database_url, "SELECT 1")
    servers.postgres.start()
    assert (servers.postgres.port, servers.postgres.pid != pid) == (port, True)
    assert query(servers.database_url, "SELECT count(*) FROM survivors") == 0


def test_server_starts_after_its_main_process_was_killed(servers: Embedded) -> None:
    """The remains of a killed main process do not keep the next one from starting."""
    os.kill(servers.postgres.pid, signal.SIGKILL)
    wait_until(lambda: is_gone(servers.postgres.pid))
    servers.postgres.start()
    assert query(servers.database_url, "SELECT 1") == 1


def test_paused_server_goes_on(servers: Embedded) -> None:
    """A paused server leaves its callers waiting, and goes on where it was."""
    for server in (servers.postgres, servers.redis):
        server.pause()
    try:
        with pytest.raises(TimeoutError):
            query(servers.database_url, "SELECT 1", timeout_s=0.2)
        client = redis.Redis.from_url(servers.redis_url, socket_timeout=0.2, retry=None)
        with client, pytest.raises(redis.TimeoutError):
            client.ping()
    finally:
        for server in (servers.postgres, servers.redis):
            server.resume()
    assert query(servers.database_url, "SELECT 1") == 1


def test_server_outlives_the_thread_that_started_it(servers: Embedded) -> None:
    """A server outlives the thread that started it, though the kernel ends children by thread."""
    servers.redis.stop()
    thread = threading.Thread(target=servers.redis.start)
    thread.start()
    thread.join()
    time.sleep(0.2)  # nothing is to happen, which cannot be waited for
    assert not is_gone(servers.redis.pid)


def test_data_survives_a_restart(used_folder: Path) -> None:
    """Committed data is there at the next start, in both servers."""
    with start(used_folder, fallback=True) as servers:
        assert query(servers.database_url, "SELECT count(*) FROM kept") == 0
        with redis.Redis.from_url(servers.redis_url) as client:
            assert client.get("kept") == b"1"


def test_deleted_folder_is_a_clean_start(tmp_path: Path) -> None:
    """After the folder is deleted, both servers start without data."""
    for _ in range(2):
        with start(tmp_path / "servers", fallback=True) as servers:
            query(servers.database_url, "CREATE TABLE events (value int)")
            with redis.Redis.from_url(servers.redis_url) as client:
                assert client.set("seen", "1", nx=True)
        shutil.rmtree(tmp_path / "servers")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_servers_end_with_their_owner(used_folder: Path, number: signal.Signals) -> None:
    """By any signal to the owner, its servers end too, and the next start finds all in order."""
    owner, pids, url = started_owner(used_folder)
    query(url, "SELECT 1")
    owner.send_signal(number)
    owner.wait(PATIENCE_S)
    wait_until(lambda: all(map(is_gone, pids)))
    with start(used_folder, fallback=True) as servers:
        assert query(servers.database_url, "SELECT count(*) FROM kept") == 0


def test_next_owner_kills_frozen_servers(
    used_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that could not notice the end of their owner are killed by the next one."""
    monkeypatch.setattr(embedded, "LEFTOVERS_TIMEOUT_S", 0)
    owner, pids, _ = started_owner(used_folder)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    owner.kill()
    owner.wait(PATIENCE_S)
    with start(used_folder, fallback=True) as servers:
        wait_until(lambda: all(map(is_gone, pids)))  # the lock is free a moment before
        assert query(servers.database_url, "SELECT 1") == 1


def test_stale_files_of_a_crash_do_not_prevent_a_start(
    used_folder: Path, servers: Embedded
) -> None:
    """Files that name another program's process do not prevent the start."""
    data = next(used_folder.glob("postgresql-*[0-9]"))
    (data / "postmaster.pid").write_text(f"{servers.postgres.pid}\n{data}\n")
    (used_folder / "owner.lock").write_text(str(os.getpid()))
    (used_folder / f"{data.name}.new").mkdir(exist_ok=True)
    with start(used_folder, fallback=True) as again:
        assert query(again.database_url, "SELECT 1") == 1


def test_another_port_is_tried(used_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a port is taken meanwhile, another one is tried."""
    with socket.socket() as rival:
        rival.bind(("127.0.0.1", 0))
        taken = rival.getsockname()[1]
        free_port = embedded_process.free_port
        ports = iter([taken])
        monkeypatch.setattr(embedded_process, "free_port", lambda: next(ports, 0) or free_port())
        with start(used_folder, fallback=True) as servers:
            assert taken not in (servers.postgres.port, servers.redis.port)


def test_failed_start_reports_the_servers_own_words(used_folder: Path) -> None:
    """The error is the server's own last words, and nothing is left running."""
    data = next(used_folder.glob("postgresql-*[0-9]"))
    version = (data / "PG_VERSION").read_text()
    (data / "PG_VERSION").write_text("9.6\n")
    try:
        with (
            pytest.raises(EmbeddedError, match=r"(?s)does not start: .* initialized by .* 9\.6"),
            start(used_folder, fallback=True),
        ):
            pass
    finally:
        (data / "PG_VERSION").write_text(version)


def test_unusable_folder_is_one_clear_error(tmp_path: Path) -> None:
    """A file in the place of the folder is one clear error."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(EmbeddedError, match="file cannot be used"),
        start(tmp_path / "file", fallback=True),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("sources.list", "# deb http://a/debian bookworm main\ndeb {} bookworm main contrib\n"),
        ("sources.list.d/a.list", "deb [arch=amd64 signed-by=/k.gpg] {} stable main\n"),
        (
            "sources.list.d/debian.sources",
            "Types: deb deb-src\n# http://a/debian\nURIs: {}\nSuites: trixie\nComponents: main\n",
        ),
    ],
)
def test_mirror_is_found_among_other_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str
) -> None:
    """The host's own Debian mirror is found in either form; other repositories are not taken."""
    apt_get = shutil.which("apt-get")
    if apt_get is None:
        pytest.skip("no apt-get here")
    monkeypatch.setattr(embedded_programs, "APT_SETTINGS", tmp_path)
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (parts / "0.list").write_text("deb https://docker.example/linux/debian bookworm stable\n")
    (parts / "1.list").write_text("deb https://cloud.example/apt cloud-sdk-bookworm main\n")
    (parts / "2.list").write_text("deb http://archive.example/ubuntu noble main\n")
    (parts / "0.sources").write_text(
        "Types: deb\nURIs: https://deb.node.example/debian\nSuites: nodistro\nComponents: main\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://off.example/debian\nSuites: sid\nComponents: main\n"
    )
    with pytest.raises(EmbeddedError, match="no mirror of Debian"):
        embedded_programs._mirror(apt_get)
    (tmp_path / name).write_text(text.format("http://mirror.example/debian"))
    assert embedded_programs._mirror(apt_get) == "http://mirror.example/debian"


def test_fallback_is_used_without_a_mirror(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The fallback is taken soon, with the reason in one line, and nothing half-done remains."""
    monkeypatch.setattr(embedded_programs, "APT_SETTINGS", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "sources.list").write_text("deb http://127.0.0.1:9/debian bookworm main\n")
    programs = embedded_programs.find()
    assert not programs.has_timescaledb
    assert "without TimescaleDB" in programs.description
    _, line = capsys.readouterr().out.splitlines()
    assert "Debian's is not available: " in line
    assert [path.suffix for path in (tmp_path / "cache/flokit-gateway").iterdir()] == [".lock"]


def test_programs_are_unpacked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One process works and the other waits; remains of an interrupted one go; the programs run."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        try:
            roots = list(pool.map(unpack, [["hello"], ["hello"]]))
        except EmbeddedError as why:
            pytest.skip(str(why))
    root = roots[0]
    assert roots[1] == root
    assert capsys.readouterr().out.count("Downloading") == 1
    greeting = subprocess.check_output([root / "usr/bin/hello"], text=True)
    assert greeting == "Hello, world!\n"
    assert unpack(["hello"]) == root
    assert capsys.readouterr().out == ""  # nothing is downloaded again
    assert sorted(path.name for path in root.parent.iterdir()) == [root.name, f"{root.name}.lock"]


def test_unpacked_servers_are_small() -> None:
    """The cache has no compiler, Perl or manuals, since the servers have no use of them."""
    try:
        root = unpack(embedded_programs.SERVERS)
    except EmbeddedError as why:
        pytest.skip(str(why))
    assert sum(path.lstat().st_size for path in root.rglob("*")) < 150_000_000
