"""The runbook: its statements and commands do as described, and name things that exist."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from prometheus_client.metrics import MetricWrapperBase

from app.dev import embedded
from app.dev.embedded import Embedded, unpack
from app.telemetry import metrics
from bench.testbed.process import PATIENCE_S, POLL_S, ROOT, inherited
from tests.gateways import Process
from tests.kustomize import K8S, rendered

RUNBOOK = (K8S / "README.md").read_text()
WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
DUPLICATE = {"received": 1, "written": 0, "duplicate": 1, "dropped": 0}
DROPPED = {"received": 1, "written": 0, "duplicate": 0, "dropped": 1}
pytestmark = pytest.mark.services


def section(heading: str) -> str:
    """The text under a heading."""
    return RUNBOOK.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def statements(text: str) -> list[tuple[str, str]]:
    """Each SQL block, with the name of the database from its first line."""
    return re.findall(r"```sql\n-- in (\w+)\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[str]:
    """The lines of the console blocks that are typed in."""
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE)]


class Database:
    """A server of the test's own, since roles belong to a whole server."""

    def __init__(self, servers: Embedded) -> None:
        self.servers = servers

    def url(self, database: str = "", role: str = "") -> str:
        """The address of a database for a role of the runbook, or for the superuser."""
        parts = urlsplit(self.servers.database_url)
        if role:
            parts = parts._replace(netloc=f"{role}:change-me@127.0.0.1:{parts.port}")
        return urlunsplit(parts._replace(path=f"/{database}" if database else ""))

    def environ(self, role: str, database: str = "measurement") -> dict[str, str]:
        """The environment of a command of the gateway."""
        return inherited() | {"DATABASE_URL": self.url(database, role), "RETENTION_D": "400"}

    def run(self, sql: str, database: str) -> None:
        """Run statements as the superuser, one by one as psql does."""

        async def execute() -> None:
            connection = await asyncpg.connect(self.url(database))
            for statement in filter(str.strip, sql.split(";")):
                await connection.execute(statement)
            await connection.close()

        asyncio.run(execute())


def app(command: str, environ: dict[str, str]) -> str:
    """Run a command of the gateway; return its output."""
    words = [sys.executable, "-m", "app", command]
    ended = subprocess.run(
        words, cwd=ROOT, env=environ, capture_output=True, text=True, check=False, timeout=60
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def shell(line: str, folder: Path, environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Type a line of the runbook."""
    return subprocess.run(
        ["/bin/sh", "-c", line],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """A database set up by the runbook, up to and with the migration."""
    with embedded.start(tmp_path_factory.mktemp("runbook")) as servers:
        if not servers.has_timescaledb:
            pytest.skip("the runbook is for TimescaleDB")
        database = Database(servers)
        first = [block for block in statements(section("First deployment")) if "CREATE" in block[1]]
        assert [name for name, _ in first] == ["postgres", "measurement"]
        for name, sql in first:
            database.run(sql, name)
        assert "up to date" in app("migrate", database.environ("flokit_owner"))
        yield database


async def test_roles_of_the_runbook_have_their_rights(database: Database, tmp_path: Path) -> None:
    """The gateway's role serves, the owner's migrates and retains, and `check` finds no fault."""
    servers = database.servers
    url = database.url("measurement", "flokit_gateway")
    with Process(url, servers.redis_url, tmp_path) as gateway:
        gateway.wait_until_ready()
        assert (await gateway.callback()).json == WRITTEN
        # A day of which no chunk is there yet.
        assert (await gateway.callback(user_id="usr_2", created_at="1760000000")).json == WRITTEN
        assert (await gateway.callback(event_token="zzzzzz")).json == DROPPED
        assert (await gateway.callback(secret="wrong")).status == 401
    assert "chunks dropped" in app("retain", database.environ("flokit_owner"))
    told = app("check", inherited() | gateway.environ)
    assert "FAILED" not in told
    assert "generation" in told
    assert "ok       quarantine: 0.0 of 1024 MB, 14 days" in told
    connection = await asyncpg.connect(url)
    assert await connection.fetchval("SELECT subject FROM dropped") == "zzzzzz"
    await connection.close()


def test_every_statement_of_the_runbook_runs(database: Database) -> None:
    """Every statement runs as it stands, and is found."""
    blocks = statements(RUNBOOK)
    assert len(blocks) == RUNBOOK.count("```sql") >= 6
    for name, sql in blocks:
        if "CREATE" not in sql:
            database.run(sql, name)


@asynccontextmanager
async def frozen_copy(url: str) -> AsyncIterator[None]:
    """A gateway's backend is in the middle of a COPY that its client has stopped to send."""
    as_ours = {"application_name": "flokit-gateway"}
    connection = await asyncpg.connect(url, server_settings=as_ours)
    begun = asyncio.Event()

    async def nothing() -> AsyncIterator[bytes]:
        begun.set()
        await asyncio.Event().wait()
        yield b""

    copying = asyncio.create_task(connection.copy_to_table("stable_events", source=nothing()))
    try:
        await begun.wait()
        yield
    finally:
        # Cancelled before that, it would wait for the server's answer.
        connection.terminate()
        copying.cancel()
        await asyncio.wait([copying])


async def test_frozen_copy_is_found_and_ended(database: Database) -> None:
    """The runbook's statements find a COPY that stands still, and end it."""
    blocks = statements(section("A frozen gateway that holds locks"))
    find, end = (sql.replace("15 seconds", "0 seconds") for _, sql in blocks)
    url = database.url("measurement")
    operator = await asyncpg.connect(url)

    async def until(number: int) -> list[asyncpg.Record]:
        async with asyncio.timeout(PATIENCE_S):
            while len(found := await operator.fetch(find)) != number:
                await asyncio.sleep(POLL_S)
        return list(found)

    async with frozen_copy(url):
        (found,) = await until(1)
        assert found["query"].startswith("COPY")
        await operator.execute(end)
        await until(0)
    await operator.close()


@asynccontextmanager
async def waiting_commit(
    url: str,
) -> AsyncIterator[tuple[asyncpg.Connection, asyncio.Task[str]]]:
    """A gateway's backend has written, and waits for a synchronous standby that is away."""
    operator = await asyncpg.connect(url)
    writer = await asyncpg.connect(url, server_settings={"application_name": "flokit-gateway"})
    await operator.execute("SET synchronous_commit = local")
    await operator.execute("ALTER SYSTEM SET synchronous_standby_names = 'away'")
    await operator.execute("SELECT pg_reload_conf()")
    waited = asyncio.Event()

    async def commit_until_waited() -> str:
        # One of the server's own processes decides for all, as soon as it has read the file.
        while True:
            insert = "INSERT INTO stable_events VALUES (gen_random_uuid(), now())"
            status: str = await writer.execute(insert)
            if waited.is_set():
                return status

    commit = asyncio.create_task(commit_until_waited())
    waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await operator.fetchval(waits):
                await asyncio.sleep(POLL_S)
        waited.set()
        yield operator, commit
    finally:
        waited.set()
        await operator.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await operator.execute("SELECT pg_reload_conf()")
        await asyncio.wait([commit])
        writer.terminate()
        await operator.close()


async def test_commit_that_waits_for_the_standby_is_left_alone(database: Database) -> None:
    """The runbook's statements neither find nor end a commit that its standby has not confirmed."""
    blocks = statements(section("A frozen gateway that holds locks"))
    find, end = (sql.replace("15 seconds", "0 seconds") for _, sql in blocks)
    url = database.url("measurement")
    async with waiting_commit(url) as (operator, commit):
        assert await operator.fetch(find) == []
        assert await operator.fetch(end) == []
    assert await commit == "INSERT 0 1"


async def test_index_on_a_cast_is_found_and_dropped(database: Database, tmp_path: Path) -> None:
    """The runbook's statement names the index that refuses events, and nothing of ours."""
    [(name, find)] = statements(section("Events refused by the database"))
    operator = await asyncpg.connect(database.url(name))
    assert await operator.fetch(find) == []
    await operator.execute("CREATE INDEX cast_ ON events (((properties ->> 'revenue')::numeric))")
    url = database.url("measurement", "flokit_gateway")
    with Process(url, database.servers.redis_url, tmp_path) as gateway:
        gateway.wait_until_ready()
        dropped = {"received": 1, "written": 0, "duplicate": 0, "dropped": 1}
        assert (await gateway.callback(user_id="comma", revenue="12,50")).json == dropped
        [pattern] = re.findall(r"grep '(refuses [^']*)'", section("Events refused by the database"))
        assert pattern in gateway.log.read_text()
        [found] = await operator.fetch(find)
        assert (found["kind"], found["name"]) == ("index", "cast_")
        await operator.execute(f"DROP INDEX {found['name']}")
        assert (await gateway.callback(user_id="comma", revenue="12,50")).json == WRITTEN
    await operator.close()


async def test_sender_of_wrong_days_is_found(database: Database, tmp_path: Path) -> None:
    """The runbook's statements find the days that were added, and the sender of their events."""
    [(name, find), (_, ask)] = statements(section("Chunks of wrong days"))
    operator = await asyncpg.connect(database.url(name))
    days = [datetime(2011, month, 13, 12, tzinfo=UTC) for month in (3, 5, 8)]
    assert await operator.fetch(ask) == []
    url = database.url("measurement", "flokit_gateway")
    with Process(url, database.servers.redis_url, tmp_path) as gateway:
        gateway.wait_until_ready()
        for day in (*days, datetime.now(UTC)):
            sent = {"user_id": "wrong-clock", "created_at": f"{day.timestamp():.0f}"}
            assert (await gateway.callback(**sent)).json == WRITTEN
    # Another test has events of a day long gone, too.
    added = [record for record in await operator.fetch(find) if record["range_start"] < days[-1]]
    assert [record["range_start"] <= day < record["range_end"]
            for record, day in zip(added, days, strict=True)] == [True] * 3  # fmt: skip
    [found] = await operator.fetch(ask)
    assert (found["app_token"], found["events"], found["days"]) == ("abc123token", 3, 3)
    async with operator.transaction():
        await operator.execute(f"EXPLAIN ANALYZE {ask}")
        locked = await operator.fetchval(
            "SELECT count(DISTINCT relation) FROM pg_locks JOIN pg_class ON oid = relation "
            "WHERE pid = pg_backend_pid() AND relname LIKE '\\_hyper%chunk'"
        )
    assert locked == len(days)
    await operator.close()


async def test_redis_is_made_to_forget(database: Database, tmp_path: Path) -> None:
    """After the runbook's statement, rows that were deleted by hand are written again."""
    [(name, forget)] = statements(section("Making Redis forget"))
    url = database.url("measurement", "flokit_gateway")
    owner = await asyncpg.connect(database.url(name, "flokit_owner"))
    with Process(url, database.servers.redis_url, tmp_path) as gateway:
        gateway.wait_until_ready()

        async def again() -> object:
            return (await gateway.callback(user_id="deleted", transaction_id="t1")).json

        assert await again() == WRITTEN
        assert await again() == DUPLICATE
        await owner.execute("DELETE FROM events WHERE user_id = 'deleted'")
        await owner.execute("DELETE FROM stable_events")
        assert await again() == DUPLICATE
        await owner.execute(forget)
        async with asyncio.timeout(PATIENCE_S):
            while await again() == DUPLICATE:
                await asyncio.sleep(POLL_S)
    found = "SELECT count(*) FROM events WHERE user_id = 'deleted'"
    assert await owner.fetchval(found) == 1
    await owner.close()


async def test_restored_backup_gets_its_missing_events(database: Database, tmp_path: Path) -> None:
    """An event seen in Redis and absent from the backup is written again; a restored one is not."""
    lines = [line for line in commands(section("Restoring a backup")) if "kubectl" not in line]
    path = f"{database.servers.psql.parent}:{os.environ['PATH']}"
    environ = inherited() | {"PATH": path, "SERVER": database.url()}
    backup, *restore = lines
    assert backup.startswith("pg_dump")
    for name in ("measurement", "restored"):
        (tmp_path / name).mkdir()

    def serving(name: str) -> Process:
        url = database.url(name, "flokit_gateway")
        return Process(url, database.servers.redis_url, tmp_path / name)

    with serving("measurement") as gateway:
        gateway.wait_until_ready()
        assert (await gateway.callback(user_id="before")).json == WRITTEN
        assert shell(backup, tmp_path, environ).returncode == 0
        assert (await gateway.callback(user_id="after")).json == WRITTEN
        assert (await gateway.callback(user_id="after")).json == DUPLICATE
    for line in restore:
        assert shell(line, tmp_path, environ).returncode == 0, line
    assert "up to date" in app("migrate", database.environ("flokit_owner", "restored"))
    with serving("restored") as gateway:
        gateway.wait_until_ready()
        assert (await gateway.callback(user_id="before")).json == DUPLICATE
        assert (await gateway.callback(user_id="after")).json == WRITTEN


def test_wrong_mapping_is_found(tmp_path: Path) -> None:
    """The runbook's command reports `ok` for valid workspaces, and the place in wrong ones."""
    line = next(line for line in commands(section("Mapping change")) if "app check" in line)
    example = K8S / "overlays/example/workspaces/workspaces.toml"
    wrong = tmp_path / "workspaces.toml"
    wrong.write_text(example.read_text().replace("abc123token", ""))
    for file, said in ((example, "ok       workspaces: 1 with 1 apps"), (wrong, "app_token")):
        there = line.replace("k8s/overlays/production/workspaces/workspaces.toml", str(file))
        assert said in shell(there, ROOT, inherited()).stdout


def test_runbook_names_only_existing_objects() -> None:
    """Each object in a command is one of the manifests', of this version or the next."""
    there = {
        f"{document['kind'].lower()}/{document['metadata']['name']}" for document in rendered()
    }
    there |= {name.replace("horizontalpodautoscaler/", "hpa/") for name in there}
    there |= {name.replace("0-2-0", "0-3-0") for name in there}
    named = set()
    for line in commands(RUNBOOK):
        words = shlex.split(line)
        named |= {word for word in words if re.fullmatch(r"(deployment|job|hpa|cronjob)/\S+", word)}
        if "secret" in words:
            kind, name = words[words.index("secret") + 1 :][:2]
            named.add(f"{kind}/{name}")
    for ingress in rendered():
        if ingress["kind"] == "Ingress":
            there |= {f"tls/{tls['secretName']}" for tls in ingress["spec"]["tls"]}
    assert len(named) >= 4
    assert named <= there


def test_secrets_are_changed_in_the_overlay() -> None:
    """The runbook patches no secret in the cluster, since the next `apply` would undo it."""
    assert not [line for line in commands(RUNBOOK) if "patch secret" in line]
    for heading in ("Secret rotation", "Redis loss", "Restoring a backup"):
        assert "$ kubectl apply -k k8s/overlays/production" in section(heading)


def test_runbook_queries_existing_metrics() -> None:
    """Each query is valid PromQL, over metrics that the gateway has."""
    queries = re.findall(r"```promql\n(.*?)```", RUNBOOK, re.DOTALL)
    assert len(queries) >= 2
    declared = {m._name for m in vars(metrics).values() if isinstance(m, MetricWrapperBase)}
    promtool = str(unpack(["prometheus"]) / "usr/bin/promtool")
    for query in queries:
        command = [promtool, "--experimental", "promql", "format", query]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
    named = set(re.findall(r"\bflokit_\w+", "".join(queries)))
    assert {name.removesuffix("_total") for name in named} <= declared
