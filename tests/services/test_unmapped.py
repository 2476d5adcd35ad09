"""`unmapped`: the events without a mapping, on a real database."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

import adapters
from app import workspaces_file
from app.event import DropReason
from sinks.timescale import drops
from sinks.timescale.schema import timescaledb_version
from tests.gateways import workspaces_toml
from tests.kept import drop, invoke, keep

NOW = datetime.now(UTC)
REVENUE = b"app_token=abc123token&event_token=zzzzzz&revenue=499&revenue_float=4.99&currency=USD"
CLICK = b"app_token=abc123token&activity_kind=click&created_at=1750500000"


@pytest.fixture(autouse=True)
def environ(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only setting that the command needs."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.delenv("WORKSPACES_FILE", raising=False)


async def unmapped(*words: str) -> int:
    """Run the command."""
    return await asyncio.to_thread(invoke, "unmapped", *words)


def after(lines: list[str], line: str) -> str:
    """The line after another one."""
    return lines[lines.index(line) + 1]


def words(line: str) -> str:
    """A line without the alignment of its columns."""
    return " ".join(line.split())


async def test_no_unmapped_event_is_one_line(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Drops for other reasons, and old ones, are not listed."""
    await keep(
        connection,
        drop(reason=DropReason.UNKNOWN_APP),
        drop(received_at=NOW - timedelta(days=31)),
    )
    assert await unmapped() == 0
    out, err = capsys.readouterr()
    assert out.startswith("no unmapped events in quarantine since ")
    assert (len(out.splitlines()), err) == (1, "")


async def test_events_come_with_their_likely_meaning_and_lines_to_paste(
    connection: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The table has the most frequent first; the lines belong into the file as they are."""
    path = tmp_path / "workspaces.toml"
    path.write_text(workspaces_toml("abc123token"))
    monkeypatch.setenv("WORKSPACES_FILE", str(path))
    await keep(
        connection,
        *(drop("zzzzzz", query=REVENUE) for _ in range(3)),
        *(drop("click", query=CLICK) for _ in range(2)),
        drop("G3MZ3T"),
    )
    assert await unmapped() == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert words(head) == "app event kind in quarantine first last looks like"
    token, click, case = lines[:3]
    assert words(token).startswith("abc123token zzzzzz event token 3 ")
    assert token.endswith("has revenue (usd): a purchase?")
    assert words(click).startswith("abc123token click activity kind 2 ")
    assert click.endswith("not wanted? add it to ignore")
    assert case.endswith("differs only in letter case from g3mz3t (purchase)")
    place = "of app abc123token (adjust):"
    assert (
        after(lines, f"# right after  events = {{  {place}") == 'zzzzzz = "", G3MZ3T = "purchase",'
    )
    assert after(lines, f"# as a line below app_token, {place}") == 'ignore = [ "click" ]'
    assert lines[-1] == "python -m app replay --reason unmapped_event --app abc123token --dry-run"


FORMS = [
    # The section of the app, the comment, and the text that the lines come right after.
    ('events = { g3mz3t = "purchase" }\n', "# right after  events = {  ", "events = {"),
    (
        '[workspaces.apps.events]\ng3mz3t = "purchase"\n',
        "# below  [workspaces.apps.events]  ",
        "[workspaces.apps.events]\n",
    ),
    ("", "# as a line below app_token, ", 'app_token = "abc123token"\n'),
]


@pytest.mark.parametrize("form", FORMS)
async def test_pasted_lines_are_accepted(
    connection: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    form: tuple[str, str, str],
) -> None:
    """Where the comment directs them, the lines fit the form of the file."""
    section, comment, before = form
    path = tmp_path / "workspaces.toml"
    app = '[[workspaces]]\nid = "w"\n[[workspaces.apps]]\nvendor = "adjust"\n'
    path.write_text(f'{app}app_token = "abc123token"\n{section}')
    monkeypatch.setenv("WORKSPACES_FILE", str(path))
    await keep(connection, drop("zzzzzz"), drop("yyyyyy"))
    assert await unmapped() == 0
    pasted = capsys.readouterr().out.partition(f"{comment}of app abc123token (adjust):\n")[2]
    pasted = pasted.partition("\n\n")[0].replace('""', '"order"')
    if before.endswith("\n"):
        pasted += "\n"
    path.write_text(path.read_text().replace(before, before + pasted))
    [found] = workspaces_file.read(path, adapters.load()).values()
    expected = {"zzzzzz": "order", "yyyyyy": "order"}
    assert found.events == expected | ({"g3mz3t": "purchase"} if section else {})


async def test_event_that_is_mapped_by_now_is_to_be_replayed(
    connection: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """After the mapping the event is listed until its callbacks are replayed."""
    path = tmp_path / "workspaces.toml"
    path.write_text(workspaces_toml("abc123token"))
    monkeypatch.setenv("WORKSPACES_FILE", str(path))
    await keep(connection, drop("g3mz3t"))
    assert await unmapped() == 0
    assert "mapped by now, to purchase: replay it" in capsys.readouterr().out


async def test_hostile_token_is_harmless_to_terminal_file_and_shell(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """A token with control characters, quotes or a command changes nothing but its own line."""
    await keep(
        connection,
        drop("a\x1b[2J"),
        drop('b" = "x"\u202e'),
        drop('c" = "x'),
        drop("d", app_token="e; rm -rf $HOME"),
    )
    assert await unmapped() == 0
    out = capsys.readouterr().out
    assert all(line.isprintable() for line in out.splitlines())
    assert '"c\\" = \\"x" = ""' in out
    assert '"b' not in out
    assert (
        "\npython -m app replay --reason unmapped_event --app 'e; rm -rf $HOME' --dry-run\n" in out
    )
    assert await unmapped("--json") == 0
    out = capsys.readouterr().out
    assert out.isascii()
    assert {json.loads(line)["event"] for line in out.splitlines()} == {
        "a\x1b[2J", 'b" = "x"\u202e', 'c" = "x', "d",
    }  # fmt: skip


async def test_json_has_a_line_for_each_event(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json each event is an object, of one app where one is named."""
    await keep(connection, drop(query=REVENUE), drop(app_token="other"))
    assert await unmapped("--json", "--app", "abc123token") == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["callbacks"] == 1
    assert found["kind"] == "event token"
    assert found["looks_like"] == "has revenue (usd): a purchase?"
    assert found["section"] == "events"


async def test_one_query_reads_the_period_and_looks_samples_up(
    connection: asyncpg.Connection,
) -> None:
    """Of 20,000 drops, only days of the period are read; each sample is found by the index."""
    step = timedelta(days=10) / 20_000
    await keep(
        connection,
        *(drop(f"token{n % 50:02d}", received_at=NOW - n * step) for n in range(20_000)),
    )
    await connection.execute("ANALYZE dropped")
    selection = drops.Selection(since=NOW - timedelta(days=2))
    found = await drops.unmapped(connection, selection, 200)
    assert len(found) == 50
    assert 3_900 < sum(event.callbacks for event in found) < 4_100
    assert {event.query for event in found} == {drop(event.subject).query for event in found}
    statement, values = drops.unmapped_statement(selection, 200)
    plan = [record[0] for record in await connection.fetch(f"EXPLAIN {statement}", *values)]
    assert any("workspace_reason_subject_time on " in line for line in plan), plan
    if await timescaledb_version(connection):
        # Three days have a part of the period; the chunk of the coming day may exist.
        bounds = [line for line in plan if "received_at >= " in line and "Index Cond" not in line]
        assert len(bounds) <= 4, plan
