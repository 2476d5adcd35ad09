"""The command line, as its users meet it: processes, their lines and their exit codes."""

import asyncio
import json
import re
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from app.event import Outcome
from bench.testbed.process import ROOT, inherited
from sinks.timescale import schema
from sinks.timescale.sink import TimescaleSink
from tests.events import events, generation_of
from tests.gateways import Process, Services, environment, workspaces_toml

COMMANDS = ("dev", "serve", "migrate", "check", "dropped", "unmapped", "tail", "retain")
TIMEOUT_S = 60  # of a command that hangs
NOBODY = "127.0.0.1:1"
PASSWORD = "hush-hush"  # noqa: S105 - not a real one
DOWN = {
    "DATABASE_URL": f"postgresql://gateway:{PASSWORD}@{NOBODY}/events",
    "REDIS_URL": f"redis://:{PASSWORD}@{NOBODY}",
}
Run = subprocess.CompletedProcess[str]


def run(*arguments: str, **environ: str) -> Run:
    """Run a command to its end in just this environment, and return its output."""
    ended = subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=ROOT,
        env={**inherited(), **environ},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert PASSWORD not in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def assert_one_line(ended: Run, exit_code: int, *words: str) -> None:
    """Fail unless a command ended with this code and one line that has all of these words."""
    assert (ended.returncode, ended.stdout) == (exit_code, "")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    for word in words:
        assert word in ended.stderr


@pytest.fixture
def environ(services: Services, server: Process, tmp_path: Path) -> Mapping[str, str]:
    """An environment in which every command succeeds."""
    return environment(server.database_url, services.redis_url, tmp_path)


@pytest.fixture
async def empty(services: Services) -> AsyncIterator[str]:
    """A database without our schema."""
    name = "gateway_test_commands"
    await services.execute(None, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await services.execute(None, f"CREATE DATABASE {name}")
    yield services.url_of(name)
    await services.execute(None, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def busy_port() -> Iterator[str]:
    """A port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield str(listener.getsockname()[1])


async def set_deadlock_timeout(services: Services, database_url: str) -> None:
    """Let the server detect deadlocks so late that no commit lives through it."""
    name = urlsplit(database_url).path.strip("/")
    await services.execute(None, f"ALTER DATABASE {name} SET deadlock_timeout = '2s'")


def test_help_names_every_command() -> None:
    """The help lists every command, and each of them has a help of its own."""
    ended = run("--help")
    assert (ended.returncode, ended.stderr) == (0, "")
    for command in COMMANDS:
        assert f"\n    {command} " in ended.stdout
        own = run(command, "--help")
        assert (own.returncode, own.stderr) == (0, "")
        assert own.stdout.startswith(f"usage: python -m app {command} ")


@pytest.mark.parametrize("arguments", [(), ("server",), ("serve", "8000")])
def test_mistyped_command_shows_the_usage(arguments: tuple[str, ...]) -> None:
    """No command, an unknown one and too many words show the usage, and nothing happens."""
    ended = run(*arguments, **DOWN)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("usage: python -m app ")


# serve

WRONG_SETTINGS = [
    {"DATABASE_URL": ""},
    {"REDIS_URL": "localhost:6379"},
    {"PORT": "80a"},
    {"CLAIM_LEASE_S": "9"},
    {"BUFFER_MAX_EVENTS": "10"},
    {"RETENTION_D": "30"},
    {"ADJUST_CALLBACK_SECRET": f"{PASSWORD},"},
    {"ADJUST_CALLBACK_SECRET": f"{PASSWORD}\udcff"},
    {"ADJUST_IP_ALLOWLIST": "10.0.0.1/8"},
    {"HOST": "nobody.invalid"},
    {"HOST": "x" * 64},
    {"HOST": "192.0.2.1"},
    {"REDIS_URL": f"redis://:{PASSWORD}@{NOBODY}?db=first"},
    {"REDIS_URL": f"redis://:{PASSWORD}@{NOBODY}?no_such_option=1"},
    {"DATABASE_URL": f"postgresql://gateway:{PASSWORD}@{'x' * 64}/events"},
    {"DATABASE_URL": f"postgresql://gateway:{PASSWORD}@{NOBODY}/events?sslmode=perhaps"},
]


@pytest.mark.parametrize("wrong", WRONG_SETTINGS, ids=[ascii(wrong) for wrong in WRONG_SETTINGS])
def test_wrong_setting_stops_serve(environ: Mapping[str, str], wrong: dict[str, str]) -> None:
    """A wrong value is one line that names the variable, and nothing is served."""
    assert_one_line(run("serve", **{**environ, **wrong}), 2, f"{next(iter(wrong))}: ")


TWICE = workspaces_toml("abc", "abc")
KEPT = workspaces_toml("a", "b", more='keep = ["secret"]')
WRONG_FILES: list[tuple[str | None, str, str]] = [
    (None, "1", "No such file"),
    ('[[workspaces]]\nid == "ws"', "1", "line 2"),
    ('[[workspaces]]\nid = "ws"', "2", "$.workspaces[0]"),
    (workspaces_toml("abc", more='keeps = ["x"]'), "1", "$.workspaces[0].apps[0]"),
    (TWICE, "1", "$.workspaces[0].apps[1].app_token"),
    (KEPT, "2", "$.workspaces[0].apps[0]"),
]


@pytest.mark.parametrize(("text", "workers", "place"), WRONG_FILES)
def test_wrong_workspaces_file_stops_serve(
    environ: Mapping[str, str], text: str | None, workers: str, place: str, busy_port: str
) -> None:
    """A file that does not decode is reported before anything listens: the port here is in use."""
    path = Path(environ["WORKSPACES_FILE"])
    path.unlink()
    if text is not None:
        path.write_text(text)
    ended = run("serve", **{**environ, "PORT": busy_port, "WORKERS": workers})
    assert_one_line(ended, 2, "WORKSPACES_FILE: ", place)


def test_port_in_use_stops_serve(environ: Mapping[str, str], busy_port: str) -> None:
    """A port in use is one line that names it, and not a fault of the settings."""
    assert_one_line(run("serve", **{**environ, "PORT": busy_port}), 1, f"port {busy_port}", "PORT")


async def test_late_deadlock_detection_stops_serve_and_check(
    environ: Mapping[str, str], services: Services, database_url: str
) -> None:
    """A server that detects deadlocks too late stops both `serve` and `check`."""
    await set_deadlock_timeout(services, database_url)
    environ = {**environ, "DATABASE_URL": database_url}
    serve = await asyncio.to_thread(run, "serve", **environ)
    assert_one_line(serve, 2, "COMMIT_TIMEOUT_S: ", "deadlock_timeout")
    check = await asyncio.to_thread(run, "check", **environ)
    assert check.returncode == 2
    assert "FAILED   database setting deadlock_timeout: COMMIT_TIMEOUT_S" in check.stdout


# migrate


async def test_concurrent_migrations_apply_each_migration_once(empty: str) -> None:
    """Of several that migrate one database, one works, all succeed, and nothing is done twice."""
    migrate = [asyncio.to_thread(run, "migrate", DATABASE_URL=empty) for _ in range(4)]
    ended = await asyncio.gather(*migrate)
    assert {(run.returncode, run.stderr) for run in ended} == {(0, "")}
    lines = [line for run in ended for line in run.stdout.splitlines()]
    names = list(schema.migrations())
    assert sorted(lines) == [f"applied {name}" for name in names] + 4 * ["the schema is up to date"]
    before = await state_of(empty)
    again = await asyncio.to_thread(run, "migrate", DATABASE_URL=empty)
    assert (again.returncode, again.stdout) == (0, "the schema is up to date\n")
    assert await state_of(empty) == before


async def state_of(database_url: str) -> list[object]:
    """The state that a second migration must not change."""
    connection = await asyncpg.connect(database_url)
    applied = await connection.fetch("SELECT name, applied_at FROM schema_migrations")
    state = [*applied, await generation_of(connection)]
    await connection.close()
    return state


@pytest.mark.parametrize("command", ["migrate", "retain"])
def test_command_without_its_database_ends_with_one_line(command: str) -> None:
    """A command that needs the database reports in one line that it is not there."""
    assert_one_line(run(command, **DOWN, RETENTION_D="90"), 1, "database: ")


# check


def test_check_reports_every_part_as_ok(environ: Mapping[str, str]) -> None:
    """Where all is well, every part has its line, and the exit code is 0."""
    ended = run("check", **environ)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "FAILED" not in ended.stdout
    for subject in ("settings", "workspaces", "vendor adjust", "schema", "redis"):
        assert f"ok       {subject}: " in ended.stdout


UNWELL: dict[str, tuple[dict[str, str], int, str]] = {
    "database": ({"DATABASE_URL": DOWN["DATABASE_URL"]}, 1, "FAILED   database: does not answer"),
    "Redis": ({"REDIS_URL": DOWN["REDIS_URL"]}, 1, "FAILED   redis: does not answer"),
    "secret": ({"ADJUST_CALLBACK_SECRET": ""}, 1, "FAILED   vendor adjust: no secret in ADJUST_"),
    "file": ({"WORKSPACES_FILE": "/nowhere"}, 2, "FAILED   WORKSPACES_FILE: No such file"),
    "adapter": ({"ADJSUT_CALLBACK_SECRET": PASSWORD}, 0, "warning  vendor adjsut: "),
}


@pytest.mark.parametrize(("wrong", "exit_code", "line"), UNWELL.values(), ids=UNWELL)
def test_check_reports_a_fault_and_goes_on(
    environ: Mapping[str, str], wrong: dict[str, str], exit_code: int, line: str
) -> None:
    """A fault has its line and sets the exit code; everything else is still checked."""
    ended = run("check", **{**environ, **wrong})
    assert (ended.returncode, ended.stderr) == (exit_code, "")
    assert [found for found in ended.stdout.splitlines() if found.startswith(line)]
    unwell = [found for found in ended.stdout.splitlines() if not found.startswith("ok ")]
    assert len([found for found in unwell if not found.startswith("warning  database: ")]) == 1
    assert "redis: " in ended.stdout


async def test_check_reports_a_missing_schema_and_weak_durability(
    environ: Mapping[str, str], services: Services, empty: str
) -> None:
    """A missing schema and an asynchronous commit are reported, the schema with its remedy."""
    name = urlsplit(empty).path.strip("/")
    await services.execute(None, f"ALTER DATABASE {name} SET synchronous_commit = off")
    ended = await asyncio.to_thread(run, "check", **{**environ, "DATABASE_URL": empty})
    assert ended.returncode == 1
    assert "FAILED   schema: 0001_events is missing: run migrate\n" in ended.stdout
    assert "FAILED   database setting synchronous_commit: off\n" in ended.stdout


STRANGERS = """
CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER keep BEFORE INSERT ON stable_events FOR EACH ROW EXECUTE FUNCTION keep();
CREATE UNIQUE INDEX once ON events (adid, occurred_at);
CREATE INDEX amounts ON events (((properties ->> 'revenue')::numeric));
CREATE INDEX harmless ON events (user_id);
"""
WARNED = (
    "trigger keep on stable_events is not ours: an event that it leaves out",
    "index once on events is not ours: it is unique",
    "index amounts on events is not ours: an event that its expression fails for is dropped",
)


async def test_check_warns_of_foreign_triggers_and_indexes(
    environ: Mapping[str, str], database_url: str
) -> None:
    """Triggers and indexes that may keep events out get a warning, and no others do."""
    environ = {**environ, "DATABASE_URL": database_url}
    assert "not ours" not in (await asyncio.to_thread(run, "check", **environ)).stdout
    connection = await asyncpg.connect(database_url)
    await connection.execute(STRANGERS)
    await connection.close()
    ended = await asyncio.to_thread(run, "check", **environ)
    assert ended.returncode == 0
    assert ended.stdout.count("warning  schema: ") == len(WARNED)
    for warned in WARNED:
        assert f"warning  schema: {warned}" in ended.stdout
    [apart_s] = re.findall("ok       database clock: ours is ([0-9.]+) s ", ended.stdout)
    assert float(apart_s) < TIMEOUT_S


async def test_check_reports_a_role_without_the_function_for_duplicates(
    environ: Mapping[str, str], services: Services, database_url: str
) -> None:
    """A role without the function by which duplicates wait for the standby is a failure."""
    name, role = urlsplit(database_url).path.strip("/"), "gateway_without_the_word"
    parts = urlsplit(database_url)
    place = parts.netloc.rpartition("@")[2]
    url = parts._replace(netloc=f"{role}:{PASSWORD}@{place}").geturl()
    function = "FUNCTION pg_logical_emit_message(boolean, text, text, boolean)"
    await services.execute(
        name,
        f"DROP ROLE IF EXISTS {role}",
        f"CREATE ROLE {role} LOGIN PASSWORD '{PASSWORD}'",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role}",
    )
    environ = {**environ, "DATABASE_URL": url}
    well = await asyncio.to_thread(run, "check", **environ)
    await services.execute(name, f"REVOKE EXECUTE ON {function} FROM PUBLIC")
    ended = await asyncio.to_thread(run, "check", **environ)
    sink = TimescaleSink(url, commit_timeout_s=5)
    assert await sink.write(events("a")) == [Outcome.WRITTEN]
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await sink.write(events("a"))
    await sink.close()
    await services.execute(name, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
    assert (well.returncode, ended.returncode) == (0, 1), well.stdout
    [line] = [line for line in ended.stdout.splitlines() if line.startswith("FAILED")]
    assert line.startswith("FAILED   database commit: permission denied for function pg_logical_")
    assert line.endswith("without it no duplicate can be confirmed")


# retain

AGES_D = [0, 40, 61.5, 62.25, 62.5, 62.75, 63, 63.5, 64.5, 90, 400]


async def enter_events(connection: asyncpg.Connection) -> None:
    """Store an event with a stable ID for each of the ages."""
    for age_d in AGES_D:
        await connection.execute(
            "WITH event AS (INSERT INTO events (event_id, occurred_at, received_at, workspace_id, "
            "vendor, app_token, event_type, properties) VALUES (gen_random_uuid(), "
            "now() - $1 * interval '1 day', now(), 'w', 'v', 'a', $2, '{}') RETURNING *) "
            "INSERT INTO stable_events SELECT event_id, occurred_at FROM event",
            age_d,
            json.dumps(age_d),
        )


@pytest.mark.parametrize("table", ["hypertable", "plain table"])
async def test_retention_drops_exactly_the_old_events(
    environ: Mapping[str, str], empty: str, table: str
) -> None:
    """Old events go, young ones stay, and no row stays without its stable ID."""
    connection = await asyncpg.connect(empty)
    if table == "hypertable":
        await schema.migrate(connection)
    else:  # as on a server without the extension
        for sql in schema.migrations().values():
            await connection.execute(sql.replace("'timescaledb'", "'absent'"))
    await enter_events(connection)
    ended = await asyncio.to_thread(
        run, "retain", **{**environ, "DATABASE_URL": empty, "RETENTION_D": "62"}
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "events" in ended.stdout
    events = await connection.fetch("SELECT event_id, event_type::float AS age_d FROM events")
    stable = {record[0] for record in await connection.fetch("SELECT event_id FROM stable_events")}
    await connection.close()
    kept = {record["age_d"] for record in events}
    assert kept >= {age_d for age_d in AGES_D if age_d < 62}
    assert not {age_d for age_d in kept if age_d > 63}
    assert {record["event_id"] for record in events} <= stable
    assert len(stable) <= len([age_d for age_d in AGES_D if age_d < 63])


def test_no_retention_deletes_no_events(environ: Mapping[str, str]) -> None:
    """Without a retention, no event is deleted, and the command reports that."""
    ended = run("retain", **{**environ, "RETENTION_D": "0"})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith("RETENTION_D is 0: events are kept for ever\ndropped: ")
    assert "events: " not in ended.stdout
