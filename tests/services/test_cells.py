"""One gateway of a cell: callbacks of apps that live elsewhere, and the commands about them."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import asyncpg
import pytest
from msgspec.structs import replace

from app.dropped import encode_event
from app.event import DropReason
from bench.testbed.callbacks import workspace_toml
from bench.testbed.client import Answer, get, head, post, read_answer
from bench.testbed.ports import free_port
from bench.testbed.process import PATIENCE_S, POLL_S
from tests.cells import ELSEWHERE, HERE, SILENT, apps_toml
from tests.events import event
from tests.gateways import SECRET, Gateways, Running, Services, environment, query
from tests.kept import invoke
from tests.kept import keep as enter
from tests.outcomes import told
from tests.replays import Replays, drop, in_quarantine, keep
from tests.services.test_commands import assert_one_line, run

CELLS = {"here": HERE, "there": ELSEWHERE}
FAILED = 'flokit_callbacks_failed_total{reason="other_cell",vendor="adjust",workspace="ws_there"}'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The file of the gateways: an app that lives here, and one that lives elsewhere."""
    path = tmp_path / "workspaces.toml"
    silent = (apps_toml({f"{each}_app": ELSEWHERE}, vendor=each) for each in SILENT)
    path.write_text("\n".join([apps_toml(CELLS), *silent]))
    return path


@pytest.fixture
def environ(services: Services, database_url: str, file: Path) -> Mapping[str, str]:
    """The settings of a gateway of this cell."""
    return environment(database_url, services.redis_url, file.parent, CELL=HERE)


@pytest.fixture
async def gateway(gateways: Gateways, file: Path) -> Running:
    """A gateway of this cell."""
    assert gateways.folder == file.parent
    return await gateways.start(
        CELL=HERE,
        APPSFLYER_CALLBACK_SECRET=SECRET,
        BRANCH_CALLBACK_SECRET=SECRET,
        TENJIN_CALLBACK_SECRET=SECRET,
    )


def is_503(answer: Answer) -> bool:
    """Whether an answer makes a vendor send the callback again."""
    retry_after = answer.headers.get("retry-after", "")
    return (
        answer.status == 503
        and retry_after.isdigit()
        and answer.json == {"error": "Service Unavailable"}
    )


async def test_app_of_another_cell_is_answered_503(
    gateway: Running, connection: asyncpg.Connection
) -> None:
    """Its callback is neither written nor dropped, nor judged malformed; its secret is checked."""
    assert is_503(await gateway.callback(app_token="there"))
    assert is_503(await gateway.callback(app_token="%74here"))
    assert is_503(await gateway.callback(app_token="there", event_token="unmapped"))
    assert is_503(await gateway.post(b"[", "application/json", app_token="there"))
    assert (await gateway.callback(app_token="there", secret="wrong")).status == 401
    assert told(await gateway.callback(app_token="here")) == "written"
    assert told(await gateway.callback(app_token="nowhere")) == "dropped"
    assert (await gateway.metrics())[FAILED] == 4
    assert await connection.fetchval("SELECT array_agg(app_token) FROM events") == ["here"]
    assert await connection.fetchval("SELECT array_agg(app_token) FROM dropped") == ["nowhere"]


@pytest.mark.parametrize("vendor", SILENT)
async def test_callback_that_does_not_come_again_is_kept(
    gateway: Running, connection: asyncpg.Connection, vendor: str
) -> None:
    """Where the vendor does not send again after a 5xx, it is dropped, and all of it is kept."""
    target = f"/ingest/{vendor}?secret={SECRET}&app_token={vendor}_app&b=2"
    sent = [await post(gateway.port, target, body, "application/json") for body in (b"{}", b"[")]
    sent.append(await get(gateway.port, target))
    assert [told(answer) for answer in sent] == ["dropped"] * 3
    rows = await connection.fetch(
        "SELECT reason, subject, workspace_id, app_token, query, body FROM dropped ORDER BY drop_id"
    )
    kept = ("other_cell", ELSEWHERE, f"ws_{vendor}_app", f"{vendor}_app")
    remains = f"app_token={vendor}_app&b=2".encode()
    assert [tuple(row) for row in rows] == [(*kept, remains, body) for body in (b"{}", b"[", b"")]
    labels = f'{{reason="other_cell",vendor="{vendor}",workspace="ws_{vendor}_app"}}'
    assert (await gateway.metrics())[f"flokit_callbacks_dropped_total{labels}"] == 3


async def test_secrets_of_a_workspace_are_valid_in_every_cell(
    gateways: Gateways, file: Path
) -> None:
    """An app of another cell is verified by the secret of its workspace, where it has one."""
    assert gateways.folder == file.parent
    gateway = await gateways.start(CELL=HERE, ADJUST_CALLBACK_SECRET__WS_THERE="its-own")
    assert is_503(await gateway.callback(app_token="there", secret="its-own"))
    assert (await gateway.callback(app_token="there")).status == 401


async def test_reload_moves_an_app(gateway: Running, file: Path) -> None:
    """An app that the file moves is answered 503 from then on, and one that comes is written."""
    assert is_503(await gateway.callback(app_token="there"))
    await asyncio.to_thread(file.write_text, apps_toml({"here": ELSEWHERE, "there": HERE}))
    async with asyncio.timeout(PATIENCE_S):
        while told(await gateway.callback(app_token="there")) == "503":
            await asyncio.sleep(POLL_S)
    assert is_503(await gateway.callback(app_token="here"))
    # Without a cell the file is refused, and the last good one stays.
    await asyncio.to_thread(file.write_text, workspace_toml("ws_there", "there"))
    async with asyncio.timeout(PATIENCE_S):
        while not (await gateway.metrics())["flokit_workspaces_refused"]:
            await asyncio.sleep(POLL_S)
    assert told(await gateway.callback(app_token="there", user_id="other")) == "written"


async def test_replay_leaves_what_lives_elsewhere(
    replays: Replays, connection: asyncpg.Connection
) -> None:
    """`replay` reports `other_cell`, and leaves the row: also of a refused event."""
    refused = event("refused", app_token="there")
    await keep(replays.database_url, [
        drop("unknown", workspace_id="", reason=DropReason.UNKNOWN_APP, app_token="there",
             query=query(app_token="there").encode(), subject="there"),
        drop("", reason=DropReason.REFUSED, app_token="there", query=b"",
             event=encode_event(refused)),
        drop("own", app_token="here", query=query(app_token="here").encode()),
    ])  # fmt: skip
    replays.write(apps_toml(CELLS))
    here, there = replays.but(CELL=HERE), replays.but(CELL=ELSEWHERE)
    for words in (("--dry-run", "--json"), ("--yes", "--json")):
        report = here.run(*words).report
        assert (report["written"], report["dropped"]) == (1, {"other_cell": 2})
    assert "other_cell, stay in quarantine, for replay --from" in here.run("--yes").output
    # A refused event of an app without a cell may have a row in any of them.
    replays.write(apps_toml({"here": HERE, "another": ELSEWHERE}))
    report = here.run("--yes", "--json").report
    assert (report["written"], report["dropped"]) == (0, {"unknown_app": 2})
    replays.write(apps_toml(CELLS))
    assert await in_quarantine(connection) == 2
    assert there.run().counts == (2, 2, 0, 0, 0)
    assert await in_quarantine(connection) == 0


async def test_other_quarantine_out_of_reach_is_named(replays: Replays) -> None:
    """A database of `--from` that does not answer, or an address that is none, is one line."""
    replays.write(apps_toml({"here": HERE}))
    here = replays.but(CELL=HERE)
    for url, words, exit_code in (
        (f"postgresql://127.0.0.1:{free_port()}/other", "--from: does not answer", 1),
        ("nowhere", "--from: ", 2),
    ):
        ended = await asyncio.to_thread(here.run, "--yes", "--from", url)
        assert (ended.exit_code, ended.output) == (exit_code, "")
        [line] = ended.errors.splitlines()
        assert line.startswith(words)


@pytest.mark.parametrize("workspace", ["ws_here", "ws_new"])
async def test_file_that_comes_during_a_body_counts(
    gateway: Running, file: Path, workspace: str
) -> None:
    """An app that moves while the body of a callback arrives is not written in its old cell."""
    moved = workspace_toml(workspace, "here", more=f'cell = "{ELSEWHERE}"\n')
    target = f"/ingest/adjust?{query(app_token='here', user_id='slow')}"
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    async with asyncio.timeout(PATIENCE_S):
        writer.write(head("POST", target, headers={"Content-Length": "1"}))
        while not gateway.gateway.ingest.in_flight:
            await asyncio.sleep(POLL_S)
        await asyncio.to_thread(file.write_text, f"{moved}\n{apps_toml({'there': HERE})}")
        while told(await gateway.callback(app_token="here", user_id="quick")) != "503":
            await asyncio.sleep(POLL_S)
        writer.write(b"a")
        assert is_503(await read_answer(reader))
    writer.close()


async def test_explain_names_the_cell(environ: Mapping[str, str]) -> None:
    """`explain` has the answer of HTTP, the cell of the app, and the way to look there."""
    url = f"https://gateway.example.com/ingest/adjust?{query(app_token='there')}"
    ended = await asyncio.to_thread(run, "explain", url, **environ)
    assert ended.returncode == 1
    assert "there -> ws_there, cell eu-2" in ended.stdout
    assert "answered 503, and the vendor sends it again" in ended.stdout
    assert "this is cell eu-1: the proxy must send this app to eu-2" in ended.stdout
    ended = await asyncio.to_thread(run, "explain", url, **{**environ, "CELL": ELSEWHERE})
    assert (ended.returncode, "purchase, WRITTEN" in ended.stdout) == (0, True)
    url = f"https://gateway.example.com/ingest/tenjin?secret={SECRET}&app_token=tenjin_app"
    settings = {**environ, "TENJIN_CALLBACK_SECRET": SECRET}
    ended = await asyncio.to_thread(run, "explain", "--json", url, **settings)
    found = json.loads(ended.stdout)
    assert (found["verdict"], found["reason"], found["subject"]) == (
        "dropped", "other_cell", ELSEWHERE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "line"),
    [
        (HERE, "ok       cell: eu-1, with 1 of 5 apps"),
        ("eu-9", "warning  cell: no app lives in eu-9 (CELL), but in eu-1, eu-2"),
        ("", "FAILED   WORKSPACES_FILE: the apps live in 2 cells"),
    ],
)
async def test_check_reports_the_cell(environ: Mapping[str, str], cell: str, line: str) -> None:
    """`check` counts the apps of this cell, and finds a setting that fits no file."""
    ended = await asyncio.to_thread(run, "check", **{**environ, "CELL": cell})
    assert any(each.startswith(line) for each in ended.stdout.splitlines()), ended.stdout


async def test_check_warns_of_a_cell_without_a_setting(
    environ: Mapping[str, str], file: Path
) -> None:
    """While all apps live in one cell, a gateway without CELL serves them, with a warning."""
    await asyncio.to_thread(file.write_text, apps_toml({"here": HERE}))
    ended = await asyncio.to_thread(run, "check", **{**environ, "CELL": ""})
    assert "warning  cell: CELL is not set: this gateway has the apps of cell eu-1" in ended.stdout


@pytest.mark.parametrize("command", ["serve", "replay", "explain"])
async def test_gateway_without_its_cell_does_not_start(
    environ: Mapping[str, str], command: str
) -> None:
    """Where apps live in two cells, a command that writes or judges needs CELL."""
    words = {"serve": (), "replay": ("--yes",), "explain": ("/ingest/adjust?a=b",)}[command]
    ended = await asyncio.to_thread(run, command, *words, **{**environ, "CELL": ""})
    assert_one_line(ended, 2, "WORKSPACES_FILE: the apps live in 2 cells", "CELL")


async def test_commands_name_the_remedy(
    environ: Mapping[str, str],
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`dropped` and `unmapped` show the reason, and where its callbacks can be replayed."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    lost = drop("usr_1", reason=DropReason.OTHER_CELL, subject=ELSEWHERE, app_token="there")
    unmapped = drop("usr_1", subject="zzzzzz", app_token="there", workspace_id="ws_there")
    await enter(connection, lost, replace(unmapped, query=b"app_token=there&event_token=zzzzzz"))
    await asyncio.to_thread(invoke, "dropped", "--since", "3650d")
    output = capsys.readouterr().out
    assert "other_cell: the app lived in another cell, the subject" in output
    assert '--reason other_cell --app there --from "$OTHER_DATABASE_URL" --dry-run' in output
    await asyncio.to_thread(invoke, "unmapped", "--since", "3650d")
    assert "--app there --dry-run  # in cell eu-2, with --from" in capsys.readouterr().out


async def test_cells_prints_the_map(environ: Mapping[str, str], file: Path) -> None:
    """`cells` prints lines for HAProxy or nginx, or the SQL of a hub; it needs the file only."""
    environ = {"WORKSPACES_FILE": environ["WORKSPACES_FILE"]}
    printed = await asyncio.to_thread(run, "cells", **environ)
    assert printed.returncode == 0
    assert printed.stdout.splitlines() == [
        "adjust/here eu-1", "adjust/there eu-2", "appsflyer/appsflyer_app eu-2",
        "branch/branch_app eu-2", "tenjin/tenjin_app eu-2",
    ]  # fmt: skip
    printed = await asyncio.to_thread(run, "cells", "--nginx", **environ)
    assert printed.stdout.startswith('"adjust/here" eu-1;\n"adjust/there" eu-2;\n')
    printed = await asyncio.to_thread(run, "cells", "--hub", **environ)
    assert printed.returncode == 0
    assert "WHEN workspace_id IN ('ws_here') THEN ARRAY['eu-1']" in printed.stdout
    await asyncio.to_thread(file.write_text, workspace_toml("ws", "here"))
    assert_one_line(await asyncio.to_thread(run, "cells", **environ), 2, "no app has a `cell`")
    await asyncio.to_thread(file.write_text, apps_toml({"a b": HERE}))
    ended = await asyncio.to_thread(run, "cells", **environ)
    assert_one_line(ended, 2, "WORKSPACES_FILE: App token 'a b' of adjust holds white space")
