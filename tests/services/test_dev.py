"""`dev`: the first five minutes of a newcomer."""

import asyncio
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from urllib.request import urlopen

import pytest

from bench.testbed.ports import free_port
from bench.testbed.process import PATIENCE_S, ROOT
from tests.gateways import Services

WRITTEN = b'{"received":1,"written":1,"duplicate":0,"dropped":0}'
DUPLICATE = b'{"received":1,"written":0,"duplicate":1,"dropped":0}'
Popen = subprocess.Popen[str]


pytestmark = pytest.mark.services


@pytest.fixture
def port() -> int:
    """The gateway's port."""
    return free_port()


def start(
    folder: Path,
    port: int,
    settings: Mapping[str, str] = MappingProxyType({}),
    program: Sequence[str] = (sys.executable, "-m", "app"),
) -> Popen:
    """Run `dev` in a folder, as `make run` does in the project's."""
    return subprocess.Popen(
        [*program, "dev"],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], "PYTHONPATH": str(ROOT)}
        | {"PORT": str(port), "ADJUST_CALLBACK_SECRET": "", **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@contextmanager
def running(
    folder: Path,
    port: int,
    settings: Mapping[str, str] = MappingProxyType({}),
    program: Sequence[str] = (sys.executable, "-m", "app"),
) -> Iterator[dict[str, str]]:
    """Run `dev` until Ctrl-C; yields the lines that it prints to be pasted, by program."""
    with start(folder, port, settings, program) as process:
        assert process.stdout is not None
        lines: dict[str, str] = {}
        for line in process.stdout:
            if line.startswith("  "):
                program = Path(shlex.split(line)[0]).name
                lines[program] = line.strip()
            if "Ctrl-C" in line:
                break
        try:
            yield lines
        finally:
            # The terminal sends Ctrl-C to everyone in the foreground.
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
            assert process.stderr is not None
            assert process.stderr.read() == ""


def paste(line: str) -> bytes:
    """The output of a printed line."""
    if shutil.which("curl") is None:
        with urlopen(shlex.split(line)[1]) as answer:  # noqa: S310 - our own line
            return bytes(answer.read())
    return subprocess.run(shlex.split(line), capture_output=True, check=True).stdout


def test_pasted_line_answers_written_then_duplicate(tmp_path: Path, port: int) -> None:
    """The line answers written, then duplicate, also later; a new folder has no events."""
    with running(tmp_path, port) as lines:
        assert paste(lines["curl"]) == WRITTEN
        assert paste(lines["curl"]) == DUPLICATE
        assert b"usr_abc123" in paste(lines["psql"])
        check = f"{lines['export']}; {sys.executable} -m app check"
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        shell = ("bash", "-c", check)
        assert subprocess.run(shell, cwd=tmp_path, env=environ, check=False).returncode == 0
    with running(tmp_path, port) as lines:
        assert paste(lines["curl"]) == DUPLICATE
    shutil.rmtree(tmp_path / "data")
    with running(tmp_path, port) as lines:
        assert paste(lines["curl"]) == WRITTEN


def test_second_start_ends_with_one_line(tmp_path: Path, port: int) -> None:
    """A port in use, and a folder in use, are one clear line each, and nothing is left behind."""
    with running(tmp_path, port):
        busy = start(tmp_path, port)
        out, error = busy.communicate(timeout=PATIENCE_S)
        assert out == ""
        assert error.startswith(f"cannot listen on 127.0.0.1 port {port}: Address already in use")
        assert error.count("\n") == 1
        second = start(tmp_path, free_port())
        out, error = second.communicate(timeout=PATIENCE_S)
        assert "already running" in error
        assert error.count("\n") == 1
        assert (out, busy.returncode, second.returncode) == ("", 1, 1)


def test_servers_in_the_environment_are_used(tmp_path: Path, port: int, services: Services) -> None:
    """With DATABASE_URL and REDIS_URL nothing is started, and no password is printed."""
    database = f"gateway_dev_{os.getpid()}"
    asyncio.run(services.execute(None, f"CREATE DATABASE {database}"))
    url = services.url_of(database)
    more = {"DATABASE_URL": url, "REDIS_URL": services.redis_url, "ADJUST_CALLBACK_SECRET": "a&b"}
    with running(tmp_path, port, more) as lines:
        assert paste(lines["curl"]) == WRITTEN
        assert lines["psql"].startswith('psql "$DATABASE_URL" -c ')
        assert lines["export"] == (
            "export WORKSPACES_FILE=data/workspaces.toml ADJUST_CALLBACK_SECRET='a&b'"
        )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["workspaces.toml"]
    asyncio.run(services.execute(None, f"DROP DATABASE {database} WITH (FORCE)"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left(tmp_path: Path, port: int, number: signal.Signals) -> None:
    """The servers end with `dev`, on any signal."""
    process = start(tmp_path, port)
    assert process.stdout is not None
    for line in process.stdout:
        if "Ctrl-C" in line:
            break
    process.send_signal(number)
    process.communicate(timeout=PATIENCE_S)
    # The next start waits for the last of the old servers to end, and is refused if one does not.
    with running(tmp_path, port) as lines:
        assert paste(lines["curl"]) == WRITTEN
