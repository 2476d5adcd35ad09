"""The page on the database: its commands, typed in, make a standby that commits wait for."""

import asyncio
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.dev.processes import ENVIRONMENT, Server
from app.dev.programs import Programs
from bench.testbed.process import ROOT, as_nobody
from bench.topologies.maker import Maker, making
from bench.topologies.servers import fetch_value, superuser_connection, until, url_of
from tests.deploying import PAGE, commands, lines, statements
from tests.gateways import Services
from tests.outcomes import COMMITTED, callbacks, serving, until_told

HEADING = "A synchronous standby"


@pytest.fixture
def maker(tmp_path: Path, postgres_programs: Programs) -> Iterator[Maker]:
    """The maker of the servers."""
    (tmp_path / "servers").mkdir()
    with making(tmp_path / "servers", postgres_programs) as maker:
        yield maker


async def typed(server: Server, sql: str) -> list[tuple[str, ...]]:
    """Run a block statement by statement, as psql does; return the rows of the last."""
    rows = []
    async with superuser_connection(server) as connection:
        for statement in filter(str.strip, sql.split(";")):
            rows = [tuple(row) for row in await connection.fetch(statement)]
    return rows


def test_every_block_of_the_page_is_run() -> None:
    """Each heading with SQL or commands is one of those that a test takes blocks from."""
    sections = (ROOT / PAGE).read_text().split("\n## ")[1:]
    typed_in = {
        section.partition("\n")[0] for section in sections if re.search("```(sql|console)", section)
    }
    tests = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    run = "".join(text for text in tests if "from tests.deploying import" in text)
    assert len(typed_in) >= 8
    assert {name for name in typed_in if f'"{name}"' not in run} == set()


async def test_commits_wait_for_the_standby_of_the_page(
    maker: Maker, services: Services, tmp_path: Path
) -> None:
    """Typed in as it stands, the page makes a standby that commits wait for, and shows it."""
    role, ask_for_it, recognise, alone = statements(HEADING)
    [rule], [base_backup] = lines(HEADING), commands(HEADING)
    primary = await asyncio.to_thread(maker.primary, "one")
    await typed(primary, f"DROP ROLE replicator; {role}")
    rules = primary.folder / "pg_hba.conf"
    # The servers' own rule for replication goes, so that only the page's lets the standby in.
    own = re.sub(r"(?m)^(host|local) +replication.*\n", "", rules.read_text())
    rules.write_text(f"{rule.replace('10.0.0.0/24', '127.0.0.1/32')}\n{own}")
    await typed(primary, "SELECT pg_reload_conf()")
    assert await typed(primary, recognise) == []

    data = maker.folder / "two"
    bin_folder = maker.programs.bin_folder
    environ = dict(ENVIRONMENT) | {
        "PGDATA": str(data), "PRIMARY": "127.0.0.1", "PORT": str(primary.port),
        "PATH": f"{bin_folder}:{ENVIRONMENT['PATH']}",
    }  # fmt: skip
    shell = as_nobody(["/bin/sh", "-c", base_backup])
    await asyncio.to_thread(subprocess.run, shell, env=environ, check=True, timeout=60)
    standby = await asyncio.to_thread(maker.started, "two")
    await typed(primary, ask_for_it)

    async def is_recognised() -> bool:
        return await typed(primary, recognise) == [("two", "streaming", "sync")]

    await until(is_recognised)
    [callback, _] = callbacks("page").values()
    with serving(url_of(primary), services.redis_url, tmp_path) as gateway:
        gateway.wait_until_ready()
        await until_told(gateway, callback)
        standby.kill()
        await typed(primary, alone)
        assert await fetch_value(primary, "SHOW synchronous_standby_names") == ""
        assert await until_told(gateway, callbacks("alone")["usual"]) in COMMITTED
