"""The runbook's part about quarantine: its statements and commands do as described."""

import asyncio
import re
import shlex
from collections.abc import AsyncIterator
from secrets import token_hex
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from app.dropped import encode_event
from app.event import DropReason
from bench.testbed.process import PATIENCE_S, POLL_S
from tests.events import event
from tests.gateways import Gateways, Services, workspaces_toml
from tests.papers.test_runbook import RUNBOOK, commands, section, statements
from tests.replays import Replays, arrivals, drop, in_quarantine, keep
from tests.services.test_commands import run
from tests.services.test_tail import Tail

READS = "GRANT SELECT ON"
MAPPED = workspaces_toml("abc123token").replace("{ ", '{ zzzzzz = "purchase", ', 1)
DROPS = [
    drop("unmapped", subject="zzzzzz", parameters={"event_token": "zzzzzz"}),
    drop("stranger", reason=DropReason.UNKNOWN_APP, subject="abc123token", workspace_id=""),
    drop(
        "unfilled",
        reason=DropReason.UNFILLED_PLACEHOLDER,
        subject="{event_token}",
        parameters={"event_token": "{event_token}"},
    ),
    drop("untimed", reason=DropReason.INVALID_TIMESTAMP, subject="", parameters={"created_at": ""}),
    drop(
        "refused", reason=DropReason.REFUSED, subject="purchase", query=b"",
        event=encode_event(event("refused")),
    ),
]  # fmt: skip


async def test_commands_bring_every_drop_back(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """The commands of the runbook run, and together they write a drop of each reason."""
    await keep(replays.database_url, DROPS)
    replays.write(MAPPED)
    lines = [
        shlex.split(line.partition("-- python -m app ")[2].replace("ws_demo", "ws_test"))
        for line in commands(RUNBOOK)
        if re.search(r"-- python -m app (dropped|unmapped|replay)\b", line)
    ]
    assert sum("--yes" in words for words in lines) == len(DROPS)
    for words in lines:
        ended = await asyncio.to_thread(run, *words, **replays.settings)
        assert ended.returncode == 0, ended.stderr
    assert (await arrivals(connection)).keys() == {
        "unmapped", "stranger", "unfilled", "untimed", "refused",
    }  # fmt: skip
    assert await in_quarantine(connection) == 0


@pytest.fixture
async def reader_url(
    services: Services, database_url: str, connection: asyncpg.Connection
) -> AsyncIterator[str]:
    """The address of the test's database for a role as the runbook makes it."""
    blocks = [sql for _, sql in statements(section("Commands in a pod")) if READS in sql]
    role = f"flokit_reader_{token_hex(4)}"
    for statement in filter(str.strip, blocks[0].replace("flokit_reader", role).split(";")):
        await connection.execute(statement)
    parts = urlsplit(database_url)
    place = parts.netloc.rpartition("@")[2]
    yield urlunsplit(parts._replace(netloc=f"{role}:change-me@{place}"))
    await connection.execute(f"DROP OWNED BY {role}")
    await services.execute(None, f"DROP ROLE {role}")


async def test_reader_shows_everything_and_changes_nothing(
    gateways: Gateways, reader_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The role that may only read suffices for `dropped`, `unmapped` and `tail`."""
    gateway = await gateways.start()
    tailing = Tail(capsys, reader_url)
    await tailing.start()
    await gateway.callback(user_id="written")
    await gateway.callback(event_token="zzzzzz")
    await gateway.callback(secret="wrong")
    await tailing.until_shown("written", "unmapped_event", "401")
    await tailing.stop()
    for command in ("dropped", "unmapped"):
        ended = await asyncio.to_thread(run, command, DATABASE_URL=reader_url)
        assert (ended.returncode, "zzzzzz" in ended.stdout) == (0, True), ended.stderr
    reader = await asyncpg.connect(reader_url)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await reader.execute("DELETE FROM dropped")
    await reader.close()


async def test_emptied_quarantine_has_room(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """The statements for a full quarantine name the largest account, and make room at once."""
    (_, largest), (_, empty) = statements(section("Quarantine that is full"))
    await connection.execute(
        "INSERT INTO quarantine_usage VALUES "
        "('w', current_date, 'ws_test', 'unmapped_event', 'flood', 7, 2000000),"
        "('v', current_date, 'ws_test', 'unmapped_event', 'rare', 1, 500)"
    )
    [found, _] = await connection.fetch(largest)
    assert tuple(found) == ("ws_test", "unmapped_event", "flood", 7, "1953 kB")
    gateway = await gateways.start(QUARANTINE_MAX_MB="1")

    async def until_kept(is_kept: bool) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                before = await connection.fetchval("SELECT count(*) FROM dropped")
                await gateway.callback(event_token="zzzzzz")
                after = await connection.fetchval("SELECT count(*) FROM dropped")
                if (after > before) is is_kept:
                    return
                await asyncio.sleep(POLL_S)

    await until_kept(False)
    for statement in filter(str.strip, empty.split(";")):
        await connection.execute(statement)
    await until_kept(True)


async def test_holder_of_a_lock_is_found(
    gateways: Gateways, connection: asyncpg.Connection
) -> None:
    """The statement for a quarantine that fails names the session that holds its lock."""
    [(_, find)] = statements(section("Quarantine that fails"))
    gateway = await gateways.start()
    holder = await asyncpg.connect(gateways.database_url)
    async with holder.transaction():
        await holder.execute("LOCK TABLE dropped IN ACCESS EXCLUSIVE MODE")
        call = asyncio.create_task(gateway.callback(event_token="zzzzzz"))
        async with asyncio.timeout(PATIENCE_S):
            while not (found := await connection.fetch(find)):
                await asyncio.sleep(POLL_S)
    assert holder.get_server_pid() in {record["pid"] for record in found}
    assert (await call).status in (200, 500)
    await holder.close()
