"""Two cells, which are databases of one server, and hubs over them; the blocks of their page."""

import os
import re
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from app.commands.hub import ANALYSTS, CELL_ROLE, HubCell, hub_sql
from app.dev.processes import ENVIRONMENT
from bench.testbed.database import connected, execute
from bench.testbed.process import ROOT
from sinks.timescale.sink import TimescaleSink
from tests.gateways import Services

# They belong to the whole server, which other workers may use: here they have names of their own.
_ROLES = re.compile(rf"\b({CELL_ROLE}|{ANALYSTS}|flokit_ada)\b")


def own(text: str) -> str:
    """A text in which the roles of hubs have the names of this process."""
    return _ROLES.sub(rf"\1_{os.getpid()}", text)


PAGE = (ROOT / "docs/hub.md").read_text()
ANALYST = own("flokit_ada")
ROLES = (own(CELL_ROLE), ANALYST, own(ANALYSTS))
# The names of the cells on the page, and the databases that stand for them.
DATABASES = {name: f"gateway_cell_{name[-1]}_{os.getpid()}" for name in ("eu-1", "eu-2")}
COMMAND_TIMEOUT_S = 60


def blocks(heading: str, language: str = "sql") -> list[str]:
    """The blocks of a section of the page."""
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(rf"(?:^|\n)\n```{language}\n(.*?)```", own(section), re.DOTALL)


@dataclass
class Hubs:
    """Makes hubs over the two cells; all of them go with the cells."""

    services: Services
    folder: Path
    psql: Path
    _databases: list[str] = field(default_factory=list)

    def url(self, cell: str) -> str:
        """The address of a cell, as its owner."""
        return self.services.url_of(DATABASES[cell])

    async def start(self, template: str, role: str) -> None:
        """Make the cells; `role` is the page's SQL of the hub's role, with its rights."""
        await self.stop()  # a run that was killed may have left them
        role = own(role)
        for number, (cell, name) in enumerate(DATABASES.items()):
            await self.services.execute(None, f"CREATE DATABASE {name} TEMPLATE {template}")
            # The role belongs to the whole server: here it is that of both cells.
            grants = "\n".join(re.findall(r"^GRANT .*$", role, re.MULTILINE))
            await execute(self.url(cell), grants if number else role)

    async def stop(self) -> None:
        """Drop everything."""
        for name in (*self._databases, *DATABASES.values()):
            await self.services.execute(None, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        for role in ROLES:
            await self.services.execute(None, f"DROP ROLE IF EXISTS {role}")

    async def make(self, name: str, cells: Sequence[HubCell]) -> "Hub":
        """Make a hub by the commands of the page."""
        database = f"gateway_{name}_{os.getpid()}"
        self._databases.append(database)
        await self.services.execute(None, f"CREATE DATABASE {database}")
        hub = Hub(self.services.url_of(database), self)
        ended = hub.run(cells)
        assert (ended.returncode, ended.stderr) == (0, "")
        return hub

    def variables(self) -> str:
        """The page's file of addresses, with those of the cells."""
        [text] = blocks("Setting it up", "")
        server = urlsplit(self.services.database_url)
        for variable, database in (("eu_1", DATABASES["eu-1"]), ("eu_2", DATABASES["eu-2"])):
            for name, value in (
                ("host", server.hostname), ("port", server.port), ("dbname", database),
            ):  # fmt: skip
                text = re.sub(rf"({variable}_{name}) .*", rf"\1 {value}", text)
        return text


@dataclass
class Hub:
    """A hub, as its owner."""

    url: str
    hubs: Hubs

    def run(self, cells: Sequence[HubCell]) -> subprocess.CompletedProcess[str]:
        """Run the SQL of these cells as on the page."""
        (self.hubs.folder / "cells.psql").write_text(self.hubs.variables())
        return self.run_without_variables(cells, before="-f cells.psql ")

    def run_without_variables(
        self, cells: Sequence[HubCell], before: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run it as on the page, but for the file of addresses."""
        (self.hubs.folder / "hub.sql").write_text(own(hub_sql(cells)))
        [commands] = blocks("Setting it up", "console")
        command = re.findall(r"^\$ (psql .*)$", commands, re.MULTILINE)[0]
        assert "-f cells.psql " in command
        path = f"{self.hubs.psql.parent}:{ENVIRONMENT['PATH']}"
        return subprocess.run(
            ["/bin/sh", "-c", command.replace("-f cells.psql ", before)],
            cwd=self.hubs.folder, capture_output=True, text=True, check=False,
            timeout=COMMAND_TIMEOUT_S,
            env={**ENVIRONMENT, "HUB_URL": self.url, "PATH": path},
        )  # fmt: skip

    async def execute(self, *statements: str) -> None:
        """Run statements as the owner."""
        await execute(self.url, *statements)

    @asynccontextmanager
    async def analyst(self) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection as an analyst, whose connections to the cells end with it."""
        [create] = [block for block in blocks("Setting it up") if "CREATE ROLE" in block]
        [password] = re.findall("PASSWORD '(.*?)'", create)
        url = urlsplit(self.url)
        address = f"{ANALYST}:{password}@{url.hostname}:{url.port}"
        async with connected(url._replace(netloc=address).geturl()) as connection:
            yield connection


@asynccontextmanager
async def sink_of(url: str) -> AsyncIterator[TimescaleSink]:
    """Lend a sink on a cell."""
    sink = TimescaleSink(url, commit_timeout_s=5)
    await sink.ping()
    try:
        yield sink
    finally:
        await sink.close()
