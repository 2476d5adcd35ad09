"""The commands of the pages for growth engineers and analysts: run, and their output compared."""

import asyncio
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from app.dev.command import DEFAULTS
from app.dev.programs import Programs
from bench.testbed.process import PATIENCE_S, ROOT, Program, inherited
from tests import leaks
from tests.gateways import Process, Services

SECRET = DEFAULTS["ADJUST_CALLBACK_SECRET"]
PAGE = (ROOT / "docs/troubleshooting.md").read_text()
STORY = (ROOT / "docs/analysts.md").read_text().split("## Purchases that were lost")[1]
BASE = "http://127.0.0.1:8000"
TAIL, WAITING = "python -m app tail", "waiting for callbacks"
BLOCK = re.compile(r"^```(console|toml|)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Times of arrival; the time of the events themselves is compared.
TIME = re.compile(
    r"\b(?!2025-06-21 10:00:00)\d{4}-\d\d-\d\d \d\d:\d\d(?::\d\d)?|^\d\d:\d\d:\d\d", re.MULTILINE
)


class Block(NamedTuple):
    """A block of a page: `console`, `toml`, or the empty text for lines of `tail`."""

    kind: str
    text: str


def blocks(text: str) -> Iterator[Block]:
    """Yield the blocks of a text that are run, or compared."""
    for kind, content in BLOCK.findall(text):
        yield Block(kind, content)


def commands(block: Block) -> Iterator[tuple[str, str]]:
    """Yield the commands of a block, each with its output on the page."""
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, output = part.partition("\n")
        yield command, output


def plain(text: str) -> str:
    """Return an output without the times of arrival, and without blanks at its end."""
    return TIME.sub("TIME", text).rstrip()


class Terminal:
    """Runs commands of a page against a gateway."""

    def __init__(self, process: Process, programs: Programs, redis_url: str, folder: Path) -> None:
        (folder / ".curlrc").write_text("silent\nshow-error\n")
        path = f"{Path(sys.executable).parent}:{programs.bin_folder}:{os.environ['PATH']}"
        self._process = process
        self.environ = inherited() | {
            "PATH": path, "CURL_HOME": str(folder), "PGTZ": "UTC",
            "DATABASE_URL": process.database_url, "REDIS_URL": redis_url,
            "WORKSPACES_FILE": str(process.folder / "workspaces.toml"), **SETTINGS,
        }  # fmt: skip

    def run(self, command: str) -> str:
        """Run a command of a page, and return all that it prints."""
        here = command.replace(BASE, f"http://127.0.0.1:{self._process.port}")
        ended = subprocess.run(
            ["/bin/bash", "-c", here], cwd=ROOT, env=self.environ, text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PATIENCE_S,
        )  # fmt: skip
        return plain(ended.stdout)

    def compare(self, block: Block) -> Sequence[str]:
        """Run the commands of a block, compare their output, and return that of `tail`."""
        of_tail: list[str] = []
        for command, output in commands(block):
            if command == TAIL:
                of_tail += plain(output).splitlines()
            else:
                assert self.run(command) == plain(output), command
        return of_tail


SETTINGS = {
    "ADJUST_CALLBACK_SECRET": SECRET,
    "ADJUST_IP_ALLOWLIST": "127.0.0.1/32",
    "OTHER_CALLBACK_SECRET": "others-secret",
}


@pytest.fixture
def terminal(
    database_url: str, services: Services, postgres_programs: Programs, tmp_path: Path
) -> Iterator[Terminal]:
    """A terminal beside a gateway with the demonstration's settings."""
    [workspaces] = [block.text for block in blocks(PAGE) if block.kind == "toml"]
    (tmp_path / "workspaces.toml").write_text(workspaces)
    with Process(database_url, services.redis_url, tmp_path, **SETTINGS) as process:
        process.wait_until_ready()
        yield Terminal(process, postgres_programs, services.redis_url, tmp_path)


def test_lost_purchases_come_back(terminal: Terminal, tmp_path: Path) -> None:
    """The story for analysts: three purchases, one of them twice, and one without a time."""
    token = f"secret={SECRET}&app_token=abc123token&event_token=zzzzzz"
    for sent in (
        "1750500000&user_id=usr_1",
        "1750500000&user_id=usr_1",
        "1750600000",
        "1750700000",
        "soon",
    ):
        terminal.run(f'curl -g "{BASE}/ingest/adjust?{token}&created_at={sent}&revenue=4.99"')
    for block in blocks(STORY):
        if block.kind == "toml":
            path = tmp_path / "workspaces.toml"
            path.write_text(
                re.sub(r"^events = .*\n", block.text, path.read_text(), flags=re.MULTILINE)
            )
        else:
            terminal.compare(block)


def test_symptoms_are_those_of_the_page(terminal: Terminal, tmp_path: Path) -> None:
    """Each command of the page prints its block; `tail` prints the lines of the page, no others."""
    log = tmp_path / "tail.log"
    shown: list[str] = []

    def lines() -> Counter[str]:
        return Counter(plain(log.read_text()).splitlines())

    words = [sys.executable, *TAIL.split()[1:]]
    with Program(words, log, environ=terminal.environ) as tail:
        tail.wait_until(lambda: WAITING in log.read_text())
        for block in blocks(PAGE):
            if block.kind == "console":
                shown.extend(terminal.compare(block))
            elif not block.kind:
                shown.extend(plain(block.text).splitlines())
                # Of the requests that are turned away within a second, five leave a trace.
                tail.wait_until(lambda: Counter(shown) <= lines())
    assert lines() == Counter(shown)
    assert not asyncio.run(leaks.in_database(terminal.environ["DATABASE_URL"], SECRET))
