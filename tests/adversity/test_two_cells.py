"""Two cells behind one host name: each has its own apps, one that is down answers for itself only.

The commands and the configurations are those of `docs/cells.md`.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from msgspec.structs import replace

from app.dev.programs import Programs
from bench.testbed.callbacks import workspace_toml
from bench.testbed.client import Answer, get, post
from bench.testbed.database import connected, execute
from bench.testbed.ports import free_port
from bench.testbed.process import OK, PATIENCE_S, POLL_S, Program
from tests.cells import ELSEWHERE, HERE, apps_toml
from tests.events import event, write
from tests.gateways import SECRET, Services, Target, database_of, query
from tests.hubs import sink_of
from tests.nginx import find_nginx
from tests.outcomes import (
    COMMITTED,
    Callers,
    Parameters,
    callbacks,
    outcome,
    serving,
    told,
    until_told,
)
from tests.replays import in_quarantine
from tests.two_cells import PAGE, Cell, Cells, Door, Page, distribute, load, print_map, proxy

BY_CELL = {HERE: "abc123token", ELSEWHERE: "def456token"}
CELLS = {token: cell for cell, token in BY_CELL.items()}
# Of the workspace that moves; one app stays.
MOVES, STAYS = "mov789token", "stays12token"
SILENT = "silent.app"
OTHER_CELL = 'flokit_callbacks_failed_total{{reason="other_cell",vendor="adjust",workspace="{}"}}'
TABLES = ("events", "stable_events", "dropped", "quarantine_usage", "imports")


@pytest.fixture(scope="module")
def running(
    services: Services, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cells]:
    """Two cells, as the test before has left them."""
    found: dict[str, Cell] = {}
    with ExitStack() as stack:
        for number, name in enumerate(BY_CELL):
            url = stack.enter_context(database_of(services, template, f"cell_{number}"))
            redis_url = urlsplit(services.redis_url)._replace(path=f"/{number}").geturl()
            folder = tmp_path_factory.mktemp(name)
            gateway = serving(url, redis_url, folder, CELL=name, TENJIN_CALLBACK_SECRET=SECRET)
            found[name] = Cell(gateway, url, redis_url)
        distribute(found, apps_toml(CELLS))
        for cell in found.values():
            stack.enter_context(cell.gateway)
        for cell in found.values():
            cell.gateway.wait_until_ready()
        yield found


@pytest.fixture
async def cells(running: Cells) -> Cells:
    """Two cells without rows, and with the same file; each test has users of its own."""
    for cell in running.values():
        await execute(cell.database_url, *(f"DELETE FROM {table}" for table in TABLES))
    await load(running, apps_toml(CELLS))
    return running


async def refused(cell: Cell, workspace: str) -> float:
    """The number of callbacks of a workspace that were refused as another cell's."""
    return (await cell.gateway.metrics()).get(OTHER_CELL.format(workspace), 0.0)


async def test_each_app_is_written_in_its_cell(
    cells: Cells, tmp_path: Path, haproxy_program: Path
) -> None:
    """Through one host name, every outcome is that of a single gateway, whatever the spelling."""
    await load(cells, apps_toml(CELLS | {"moves": "moving"}))
    with proxy(cells, tmp_path / "proxy", haproxy_program) as door:
        for name, token in BY_CELL.items():
            other = next(each for each in BY_CELL if each != name)
            spelled = "".join(f"%{ord(letter):02x}" for letter in token)
            late = f"a=1;app_token={BY_CELL[other]}&{query(app_token=token)}&app_token=other"
            for kind, callback in callbacks(name).items():
                sent = {**callback, "app_token": token}
                words = [await outcome(door, sent) for _ in range(2)]
                assert words == ["written", "duplicate"], kind
                for same in (spelled, f"%20{token}+"):
                    assert await outcome(door, {**sent, "app_token": same}) == "duplicate"
            assert told(await door.send(late)) == "written"
            assert told(await door.post(b"", app_token=token, event_token="none")) == "dropped"
            target = f"//ingest/adjust/?{query(app_token=token)}"
            assert told(await get(door.port, target)) == "duplicate"
            assert (await door.callback(app_token=token, secret="wrong")).status == 401
            assert [await cells[each].rows(token) for each in (name, other)] == [3, 0]
        for token in ("nowhere", "", "%zz"):
            assert await outcome(door, {"app_token": token}) == "dropped"
        assert told(await get(door.port, f"/ingest/adjust?secret={SECRET}")) == "dropped"
        # The proxy has no such cell: the default one answers, not the proxy.
        before = await refused(cells[HERE], "ws_moves")
        assert await outcome(door, {"app_token": "moves"}) == "503"
        assert await refused(cells[HERE], "ws_moves") == before + 1
        assert (await get(door.port, "/healthz")).status == OK
        assert (await get(door.port, "/metrics")).status == 503
    async with connected(cells[HERE].database_url) as connection:
        counted = await connection.fetchval(
            "SELECT count(*) FROM dropped WHERE reason = 'unknown_app'"
        )
    assert counted == 4


async def test_cell_that_is_down_answers_for_itself_only(
    cells: Cells, tmp_path: Path, haproxy_program: Path
) -> None:
    """While one cell is down, its own callbacks get a 5xx, and all others are written."""
    with proxy(cells, tmp_path / "proxy", haproxy_program) as door:
        for down, up in ((HERE, ELSEWHERE), (ELSEWHERE, HERE)):
            cells[down].gateway.kill()
            sent = {"app_token": BY_CELL[down], "user_id": f"during-{down}"}
            for number in range(3):
                there = {"app_token": BY_CELL[up], "user_id": f"{down}-{number}"}
                assert await outcome(door, there) == "written"
                assert await outcome(door, sent) in {"502", "503", "0"}
            await cells[down].gateway.start_ready()
            assert await until_told(door, sent) == "written"


async def test_callback_that_comes_before_its_file_is_taken_over(
    cells: Cells, tmp_path: Path, postgres_programs: Programs
) -> None:
    """A callback kept as `unknown_app` in the wrong cell is there until its own cell takes it."""
    new = "def456token"
    await load(cells, apps_toml({BY_CELL[HERE]: HERE}), HERE)
    early = {"app_token": new, "user_id": "early"}
    assert await outcome(cells[HERE].gateway, early) == "dropped"
    await load(cells, apps_toml(CELLS), HERE)
    assert await outcome(cells[HERE].gateway, early) == "503"
    folder = postgres_programs.bin_folder
    wrong = Page("A callback in the wrong cell", tmp_path, cells[HERE], folder)
    assert "1 other_cell, stay in quarantine" in await wrong.type("python -m app replay --app")
    right = Page("A callback in the wrong cell", tmp_path, cells[ELSEWHERE], folder)
    right.environ["OTHER_DATABASE_URL"] = cells[HERE].database_url
    right.take("python -m app replay --app")
    assert "would be written 1" in await right.type("python -m app replay --from")
    assert await cells[ELSEWHERE].rows(new) == 0
    assert "written 1" in await right.type("python -m app replay --from")
    right.assert_complete()
    assert await outcome(cells[ELSEWHERE].gateway, early) == "duplicate"
    async with connected(cells[HERE].database_url) as connection:
        assert await in_quarantine(connection) == 0
        assert await connection.fetchval("SELECT count(*) FROM imports") == 0
    async with connected(cells[ELSEWHERE].database_url) as connection:
        imports = await connection.fetchrow("SELECT kind, read, written FROM imports")
        assert imports is not None
        assert tuple(imports) == ("replay", 1, 1)


class Moved(Target):
    """The app that moves, behind a proxy."""

    def __init__(self, door: Door) -> None:
        self._door = door

    async def callback(self, **parameters: str) -> Answer:
        """Send a callback of that app."""
        return await self._door.callback(app_token=MOVES, **parameters)


async def until_idle(cells: Cells) -> None:
    """Return when each gateway has committed the events that it had accepted before."""
    async with asyncio.timeout(PATIENCE_S):
        for cell in cells.values():
            while await cell.gateway.buffered():
                await asyncio.sleep(POLL_S)


def file_of(cell: str) -> str:
    """The file in which the apps that move live in this cell."""
    more = f'cell = "{cell}"\n'
    silent = workspace_toml("ws_moves", SILENT, vendor="tenjin", more=more)
    stays = workspace_toml("ws_moves", STAYS, more=f'cell = "{HERE}"\n')
    return apps_toml(CELLS) + workspace_toml("ws_moves", MOVES, more=more) + silent + stays


async def stop_and_copy(
    page: Page, cells: Cells, door: Door, before: Mapping[str, Parameters]
) -> None:
    """Type in the steps from the stop to the comparison; no callback is written meanwhile."""
    await load(cells, file_of("moving"))
    assert page.take("sleep") == "sleep 120"
    await until_idle(cells)
    sent = f"/ingest/tenjin?{query(app_token=SILENT, user_id='silent')}"
    assert told(await get(door.port, sent)) == "dropped"
    for each in before.values():
        assert await outcome(door, each) == "503"
    await page.type("bash copy.sh")
    one, other = (await page.type("bash compare.sh")).splitlines()
    assert one == other


async def test_workspace_moves_without_loss_or_double(
    cells: Cells, tmp_path: Path, haproxy_program: Path, postgres_programs: Programs
) -> None:
    """Typed in as it stands, the page moves a workspace under fire, across which vendors retry."""
    await load(cells, file_of(HERE))
    page = await moving(cells, tmp_path, postgres_programs.bin_folder)
    stays = {"app_token": STAYS, "user_id": "stays"}
    before = {user: {**each, "app_token": MOVES} for user, each in callbacks("before").items()}
    before["old"] = {"app_token": MOVES, "user_id": "old", "created_at": "1700000000"}
    with ExitStack() as stack:
        door = stack.enter_context(proxy(cells, tmp_path / "before", haproxy_program))
        for each in (stays, *before.values()):
            assert await outcome(door, each) == "written"
        callers, others = Callers(Moved(door), "live"), Callers(door, "other")
        async with callers.calling(), others.calling():
            await page.type("bash copy.sh")
            await callers.more()
            await stop_and_copy(page, cells, door, before)
            await load(cells, file_of(ELSEWHERE))
            for each in before.values():
                assert await outcome(door, each) == "503"
            door.port = stack.enter_context(proxy(cells, tmp_path / "after", haproxy_program)).port
            await asyncio.gather(callers.more(), others.more())
        for each in (*before.values(), {**before["stable"], "created_at": "1750500009"}):
            assert await outcome(door, each) == "duplicate"
    assert "written 1 " in await page.type("python -m app replay --from")
    await page.type("bash copy.sh")
    page.assert_complete()
    await assert_moved(cells, {each["user_id"] for each in before.values()} | {"silent"}, callers)
    assert await cells[HERE].rows(BY_CELL[HERE]) == len(others.told)
    assert await cells[HERE].rows(STAYS) == 1


async def moving(cells: Cells, folder: Path, bin_folder: Path) -> Page:
    """The page with the addresses and the apps of these cells, typed in up to the first copy."""
    page = Page("Moving a workspace", folder, cells[ELSEWHERE], bin_folder)
    script = folder / "moved.sh"
    text = script.read_text().replace("ws_demo", "ws_moves")
    script.write_text(text.replace("abc123token", MOVES).replace("com.example.app", SILENT))
    page.environ |= {"OLD_URL": cells[HERE].database_url}
    page.environ |= {"NEW_URL": cells[ELSEWHERE].database_url}
    page.assign("OLD_URL")
    page.assign("NEW_URL")
    assert (await page.type("bash compare.sh")).splitlines()[1] == "0|0|"
    page.assign("SINCE")
    return page


async def test_copy_leaves_out_a_stable_id_of_another_time(
    cells: Cells, tmp_path: Path, postgres_programs: Programs
) -> None:
    """An event with a stable ID that the new cell has under another time is not copied."""
    page = await moving(cells, tmp_path, postgres_programs.bin_folder)
    moves = {"workspace_id": "ws_moves", "app_token": MOVES}
    known = event("known", **moves, has_stable_id=True)
    later = replace(known, occurred_at=known.occurred_at + timedelta(seconds=1))
    new = [event(name, **moves, has_stable_id=name == "stable") for name in ("stable", "usual")]
    for name, rows in ((HERE, [known, *new]), (ELSEWHERE, [later])):
        async with sink_of(cells[name].database_url) as sink:
            await write(sink, rows, contested=True)
    for _ in range(2):
        await asyncio.to_thread(page.shell, "bash copy.sh")
    async with connected(cells[ELSEWHERE].database_url) as connection:
        found = await connection.fetch("SELECT user_id, occurred_at FROM events ORDER BY user_id")
        copied = await connection.fetch(
            "SELECT read, written, duplicate FROM imports ORDER BY written DESC"
        )
        stable = await connection.fetchval("SELECT count(*) FROM stable_events")
    times = {each.user_id: each.occurred_at for each in (later, *new)}
    assert {record[0]: record[1] for record in found} == times
    assert [tuple(record) for record in copied] == [(3, 2, 1), (3, 0, 3)]
    assert stable == 2


async def test_copy_from_a_cell_that_does_not_answer_fails(
    cells: Cells, tmp_path: Path, postgres_programs: Programs
) -> None:
    """`copy.sh` is not silent about a cell that it cannot read."""
    page = await moving(cells, tmp_path, postgres_programs.bin_folder)
    port = free_port()
    page.environ["OLD_URL"] = f"postgresql://127.0.0.1:{port}/gone"
    ended = await asyncio.to_thread(page.end_of, "bash copy.sh")
    assert ended.returncode != 0
    assert str(port) in ended.stderr


async def assert_moved(cells: Cells, users: set[str], callers: Callers) -> None:
    """Fail unless the new cell has one row for each user, with the stable IDs, and the old none."""
    assert await cells[HERE].rows(MOVES) == 0
    async with connected(cells[ELSEWHERE].database_url) as connection:
        found = await connection.fetchval(
            "SELECT array_agg(user_id) FROM events WHERE workspace_id = 'ws_moves'"
        )
        stable = await connection.fetchval("SELECT count(*) FROM stable_events")
    assert sorted(found) == sorted({*callers.told, *users})
    assert stable == 1 + sum(int(user.partition("-")[2]) % 2 for user in callers.told)
    assert set(callers.told.values()) <= COMMITTED


async def test_nginx_routes_by_its_map(cells: Cells, tmp_path: Path) -> None:
    """With the documented configuration nginx sends each app to its cell, also of tokens alike."""
    alike = {"Alike": HERE, "sl/ash": HERE, "aLike": ELSEWHERE}
    other = workspace_toml("ws_other", "aLike", more=f'cell = "{ELSEWHERE}"\n')
    await load(cells, apps_toml(CELLS | {"Alike": HERE, "sl/ash": HERE}) + other)
    print_map(cells, tmp_path / "cells.map", "--nginx")
    [text] = re.findall(r"```nginx\n(.*?)```", PAGE, re.DOTALL)
    for documented, cell in zip(("8001", "8002"), cells.values(), strict=True):
        text = text.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{cell.gateway.port}")
    text = text.replace("listen 8080;", f"listen 127.0.0.1:{(port := free_port())};")
    places = " ".join(f"{each}_temp_path {each};" for each in ("proxy", "fastcgi", "uwsgi", "scgi"))
    (tmp_path / "nginx.conf").write_text(
        "daemon off; master_process off; pid nginx.pid; events {}\n"
        f"http {{ client_body_temp_path body; {places} access_log off;\n{text}\n}}"
    )
    command = [find_nginx(), "-p", str(tmp_path), "-c", "nginx.conf", "-e", "error.log"]
    with Program(command, tmp_path / "nginx.log") as nginx:
        nginx.wait_until((tmp_path / "nginx.pid").exists)
        door = Door(port)
        for token, name in (CELLS | alike).items():
            sent = {"app_token": token.replace("/", "%2f"), "user_id": "nginx"}
            words = [await outcome(door, sent) for _ in range(2)]
            assert words == ["written", "duplicate"]
            assert await cells[name].rows(token) == 1
        assert await outcome(door, {"app_token": "nowhere"}) == "dropped"
        assert (await get(port, f"/ingest/adjust?{query()}&app_token=def456token")).status == OK
        same = query(app_token=f"+{BY_CELL[ELSEWHERE]}%20", user_id="nginx")
        assert told(await get(port, f"/ingest/adjust?{same}")) == "duplicate"
        assert (await post(port, "//ingest/adjust/?app_token=ALIKE", b"")).status == 401
        assert (await get(port, "/healthz")).status == OK
        assert (await get(port, "/metrics")).status == 404
