"""Two cells that run, the proxy in front of them, and the commands of their page, typed in."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from app.workspaces_file import digest_of
from bench.testbed.database import connected
from bench.testbed.haproxy import cells as behind_haproxy
from bench.testbed.haproxy import haproxy
from bench.testbed.process import PATIENCE_S, POLL_S, ROOT, inherited
from tests.cells import HERE
from tests.gateways import Process, Target
from tests.services.test_commands import run

PAGE = (ROOT / "docs/cells.md").read_text()
ROW = "SELECT count(*) FROM events WHERE app_token = $1"
# A command of the page may start some processes one after another, on a busy machine.
COMMAND_TIMEOUT_S = 180


class Door(Target):
    """The proxy in front of the cells."""

    def __init__(self, port: int) -> None:
        self.port = port


class Cell(NamedTuple):
    """A cell: one gateway, with a database and a Redis of its own."""

    gateway: Process
    database_url: str
    redis_url: str

    @property
    def file(self) -> Path:
        """Its copy of the workspaces file."""
        return self.gateway.folder / "workspaces.toml"

    async def rows(self, app_token: str) -> int:
        """The number of rows of an app."""
        async with connected(self.database_url) as connection:
            return int(await connection.fetchval(ROW, app_token))


Cells = Mapping[str, Cell]


def distribute(cells: Cells, text: str, *names: str) -> None:
    """Write a workspaces file for these cells, or for all."""
    for name in names or cells:
        cells[name].file.write_text(text)


def print_map(cells: Cells, path: Path, *words: str) -> Path:
    """Print the map of the file into a file."""
    ended = run("cells", *words, WORKSPACES_FILE=str(cells[HERE].file))
    assert ended.returncode == 0, ended.stderr
    path.write_text(ended.stdout)
    return path


@contextmanager
def proxy(cells: Cells, folder: Path, program: Path) -> Iterator[Door]:
    """HAProxy with the present map in front of the cells."""
    folder.mkdir()
    servers = {name: cell.gateway.port for name, cell in cells.items()}
    given = behind_haproxy(servers, print_map(cells, folder / "cells.map"))
    with haproxy(folder, {}, program, given) as running:
        for server in servers:
            running.wait_until(server, "UP")
        yield Door(running.port)


async def load(cells: Cells, text: str, *names: str) -> None:
    """Give a workspaces file to these cells, or to all; return when their gateways have it."""
    await asyncio.to_thread(distribute, cells, text, *names)
    wanted = float(int.from_bytes(digest_of(text.encode())[:4]))
    async with asyncio.timeout(PATIENCE_S):
        for name in names or cells:
            while (await cells[name].gateway.metrics())["flokit_workspaces_version"] != wanted:
                await asyncio.sleep(POLL_S)


class Page:
    """The commands of a section of the page, typed in with the settings of a gateway."""

    def __init__(self, heading: str, folder: Path, cell: Cell, bin_folder: Path) -> None:
        text = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
        self._lines = re.findall(r"^ *\$ (.*)$", text, re.MULTILINE)
        for name, script in zip(
            re.findall(r"^`(\w+\.sh)` ", text, re.MULTILINE),
            re.findall(r"```bash\n(.*?)```", text, re.DOTALL),
            strict=True,
        ):
            (folder / name).write_text(script)
        path = f"{Path(sys.executable).parent}:{bin_folder}:{os.environ['PATH']}"
        self.environ = inherited() | cell.gateway.environ | {"PATH": path}
        # The product is imported from the root, as in its image.
        self.environ |= {"PYTHONPATH": str(ROOT)}
        self._folder = folder

    def take(self, first: str) -> str:
        """Take the next command of the page, which begins so."""
        line: str = self._lines.pop(0)
        assert line.startswith(first)
        return line

    def assign(self, name: str) -> None:
        """Take an assignment of the page, whose value is the test's own or its output."""
        value = self.take(f"export {name}=").partition("=")[2]
        if value.startswith("$("):
            self.environ[name] = self.shell(f"echo {value}").strip()

    async def type(self, first: str) -> str:
        """Type the next command of the page in, and return its output."""
        return await asyncio.to_thread(self.shell, self.take(first))

    def shell(self, line: str) -> str:
        """Run a line, which must succeed, and return its output."""
        ended = self.end_of(line)
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stderr
        return ended.stdout

    def end_of(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line to its end, which may be a failure."""
        return subprocess.run(
            ["/bin/bash", "-euc", line], cwd=self._folder, env=self.environ, capture_output=True,
            text=True, timeout=COMMAND_TIMEOUT_S, check=False,
        )  # fmt: skip

    def assert_complete(self) -> None:
        """Fail if a command of the page was not typed in."""
        assert self._lines == []
