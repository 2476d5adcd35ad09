"""`dropped`: the callbacks in quarantine, on a real database."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from app.dropped import encode_event
from app.event import DropReason
from tests.events import event
from tests.gateways import workspaces_toml
from tests.kept import drop, invoke, keep

NOW = datetime.now(UTC).replace(microsecond=0)


@pytest.fixture(autouse=True)
def environ(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The only setting that the command needs."""
    monkeypatch.setenv("DATABASE_URL", database_url)


async def dropped(*words: str) -> int:
    """Run the command."""
    return await asyncio.to_thread(invoke, "dropped", *words)


async def test_empty_quarantine_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Without drops the command reports that, and succeeds."""
    assert await dropped() == 0
    out, err = capsys.readouterr()
    assert out.startswith("no such callback in quarantine since ")
    assert (len(out.splitlines()), err) == (1, "")


async def test_drops_are_counted_by_reason_and_subject(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each app, reason and subject is a line with its count, first and last arrival."""
    first = NOW - timedelta(days=2)
    await keep(
        connection,
        drop("zzzzzz", received_at=first),
        *(drop("zzzzzz", received_at=NOW - timedelta(minutes=n)) for n in range(3)),
        drop("other", reason=DropReason.UNKNOWN_APP, workspace_id="", app_token="other"),
        drop("old", received_at=NOW - timedelta(days=8)),
    )
    assert await dropped("--show", "0") == 0
    head, _, _, *lines = capsys.readouterr().out.splitlines()
    assert head.startswith("5 in quarantine since ")
    times = f"{first:%Y-%m-%d %H:%M} {NOW:%Y-%m-%d %H:%M}"
    assert " ".join(lines[0].split()) == f"abc123token unmapped_event zzzzzz 4 {times}"
    assert lines[1].split()[:4] == ["other", "unknown_app", "other", "1"]
    assert "the newest" not in "".join(lines)


REASONS = {
    DropReason.UNMAPPED_EVENT: "--reason unmapped_event --app abc123token",
    DropReason.UNKNOWN_APP: "--reason unknown_app --app abc123token",
    DropReason.UNFILLED_PLACEHOLDER: "--set event_token=TOKEN",
    DropReason.INVALID_TIMESTAMP: "--set created_at=@arrival",
    DropReason.REFUSED: "--reason refused",
}


async def test_reason_comes_with_its_remedy(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each reason comes with what to do, and the replay to type."""
    await keep(connection, *(drop(reason=reason) for reason in REASONS))
    assert await dropped() == 0
    lines = capsys.readouterr().out.splitlines()
    for reason, command in REASONS.items():
        place = next(n for n, line in enumerate(lines) if line.startswith(f"{reason.value}: "))
        assert lines[place + 1].startswith("    python -m app replay ")
        assert command in lines[place + 1]


async def test_replay_of_unfilled_placeholder_sets_all_that_is_missing(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each placeholder has a command of its own, with the values that its callback lacks."""
    reason, app = DropReason.UNFILLED_PLACEHOLDER, b"app_token=abc123token&"
    both = app + b"event_token={event}&created_at={created_at}"
    token = app + b"event_token={event_name}&created_at=1750500000"
    time = app + b"event_token=g3mz3t&created_at={time}"
    await keep(
        connection,
        drop("{event}", reason=reason, query=both),
        drop("{event_name}", reason=reason, query=token),
        drop("{time}", reason=reason, query=time),
    )
    assert await dropped() == 0
    out = capsys.readouterr().out
    command = "    python -m app replay --reason unfilled_placeholder --app abc123token --subject "
    for subject, options in (
        ("{event}", "--set event_token=TOKEN --set created_at=@arrival"),
        ("{event_name}", "--set event_token=TOKEN"),
        ("{time}", "--set created_at=@arrival"),
    ):
        assert f"{command}'{subject}' {options} --dry-run\n" in out


async def test_mistyped_app_token_is_to_be_corrected(
    connection: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A token that resembles a known one is no app to be added; the replay sets the known one."""
    path = tmp_path / "workspaces.toml"
    path.write_text(workspaces_toml("abc123token"))
    monkeypatch.setenv("WORKSPACES_FILE", str(path))
    reason = DropReason.UNKNOWN_APP
    await keep(
        connection,
        drop("ABC123token", reason=reason, workspace_id="", app_token="ABC123token"),
        drop("other", reason=reason, workspace_id="", app_token="other"),
    )
    assert await dropped() == 0
    out = capsys.readouterr().out
    assert "ABC123token differs only in letter case or white space from abc123token" in out
    command = "    python -m app replay --reason unknown_app --app"
    assert f"{command} ABC123token --set app_token=abc123token --dry-run\n" in out
    assert f"and add --set app_token=TOKEN):\n{command} other --dry-run\n" in out


async def test_malformed_body_is_shown_and_not_replayed(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unreadable body is shown; its remedy is no replay."""
    poison = b"\x00\xff\x1b[2J not a form"
    await keep(
        connection,
        drop(
            "", reason=DropReason.MALFORMED, method="POST", content_type="text/plain", body=poison
        ),
    )
    assert await dropped() == 0
    out = capsys.readouterr().out
    assert "malformed: correct the sender" in out
    assert "replay" not in out
    assert "text/plain: \\x00\N{REPLACEMENT CHARACTER}\\x1b[2J not a form" in out


async def test_newest_callbacks_are_shown_decoded_and_harmless(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest callbacks are shown with decoded values, in which a terminal finds no command."""
    hostile = b"app_token=a%1b%5b2Jb&event_token=c%C2%9B2Jd&name=%E2%80%AEGr%C3%B6%C3%9Fe+1"
    await keep(
        connection,
        drop("old", received_at=NOW - timedelta(hours=1)),
        drop("e\x1b]0;f\x07g\u202e", app_token="h\x1b[2Ji", query=hostile),
    )
    for words in ((), ("--json",)):
        assert await dropped("--show", "1", *words) == 0
        out = capsys.readouterr().out
        assert all(line.isprintable() for line in out.splitlines())
        assert "old" not in out.partition("the newest")[2]
        if not words:
            assert "app_token=a\\x1b[2Jb  event_token=c\\x9b2Jd  name=\\u202eGröße 1" in out


async def test_refused_event_is_shown_as_json(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """A refused event is shown from its encoded form; one of another version as such."""
    encoded = encode_event(event("usr_refused"))
    for form in (encoded, encoded.replace(b"\x92\x01", b"\x92\x7f", 1)):
        await keep(
            connection,
            drop("purchase", reason=DropReason.REFUSED, query=b"", event=form),
        )  # fmt: skip
    assert await dropped() == 0
    out = capsys.readouterr().out
    assert '"user_id":"usr_refused"' in out
    assert "of another version" in out


async def test_json_has_a_line_for_each_count_and_callback(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json each line is an object: counts first, then callbacks with all their bytes."""
    query = b"app_token=abc123token&event_token=zzzzzz&name=\xff+%2B"
    await keep(connection, drop(received_at=NOW, query=query), drop("other", received_at=NOW))
    assert await dropped("--json", "--subject", "zzzzzz") == 0
    count, callback = map(json.loads, capsys.readouterr().out.splitlines())
    assert count == {
        "kind": "count", "workspace_id": "ws_test", "vendor": "adjust",
        "app_token": "abc123token", "reason": "unmapped_event", "subject": "zzzzzz",
        "callbacks": 1, "first_received_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
        "last_received_at": f"{NOW:%Y-%m-%dT%H:%M:%SZ}",
    }  # fmt: skip
    assert callback["kind"] == "callback"
    assert callback["query"] == "app_token=abc123token&event_token=zzzzzz&name=%FF+%2B"


async def test_groups_beyond_the_limit_are_counted(
    connection: asyncpg.Connection, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thousand subjects are not a thousand lines."""
    await keep(
        connection, *(drop(f"{n}", reason=DropReason.INVALID_TIMESTAMP) for n in range(1_000))
    )
    assert await dropped() == 0
    out = capsys.readouterr().out
    assert out.startswith("1,000 in quarantine since ")
    assert "\n... and 960 more subjects\n" in out
    assert len(out.splitlines()) < 80


async def test_secret_of_today_is_not_shown(
    connection: asyncpg.Connection,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A value that has become a secret since the callback arrived is not shown."""
    monkeypatch.setenv("ADJUST_CALLBACK_SECRET__WS_TEST", "old,zzzzzz-new-secret")
    await keep(connection, drop("x", query=b"app_token=abc123token&label=zzzzzz-new-secret&a=1"))
    for words in ((), ("--json",)):
        assert await dropped(*words) == 0
        out = capsys.readouterr().out
        assert "a=1" in out
        assert "new-secret" not in out
