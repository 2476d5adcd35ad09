"""The workspaces file: its valid contents, and how a running gateway follows its changes."""

import asyncio
import logging
import os
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app import workspaces, workspaces_file
from app.event import App
from app.telemetry.metrics import WORKSPACES_LOADED, WORKSPACES_REFUSED
from app.workspaces import Workspaces
from app.workspaces_file import WorkspacesError, decode, read

VENDORS = {"adjust", "other"}
PROMISE_S = 5.0
DEMO = "abc123token"
GOOD = """
[[workspaces]]
id = "ws_demo"

[[workspaces.apps]]
vendor = "adjust"
app_token = "abc123token"
events = { g3mz3t = "purchase" }          # vendor event token -> canonical event type
activities = { install = "app_install" }
keep = ["tracker_name", "campaign name"]
ignore = ["click", "impression"]
omit = ["ip_address", "adid"]
stable_id = ["order", ["part", "kind of part"]]

[[workspaces.apps]]
vendor = "other"
app_token = "abc123token"

[[workspaces]]
id = "ws_\N{SNOWMAN}"
apps = [{ vendor = "adjust", app_token = "Abc123token", events = { "a.b" = "c" } }]
"""


def app(more: str = "", *, vendor: str = '"adjust"', name: str = '"abc"') -> str:
    """A file with one workspace and one app."""
    return f'[[workspaces]]\nid = "ws"\n{table(more, vendor=vendor, name=name)}'


def table(more: str = "", *, vendor: str = '"adjust"', name: str = '"abc"') -> str:
    """One more app, to be appended."""
    return f"[[workspaces.apps]]\nvendor = {vendor}\napp_token = {name}\n{more}\n"


def test_valid_file_is_read() -> None:
    """Each pair of vendor and app token has its own workspace and mapping, with defaults."""
    assert decode(GOOD.encode(), VENDORS) == {
        ("adjust", "abc123token"): App(
            workspace_id="ws_demo",
            vendor="adjust",
            app_token=DEMO,
            events={"g3mz3t": "purchase"},
            activities={"install": "app_install"},
            keep=("tracker_name", "campaign name"),
            ignore=("click", "impression"),
            omit=("ip_address", "adid"),
            stable_id=("order", ("part", "kind of part")),
        ),
        ("other", "abc123token"): App(
            workspace_id="ws_demo",
            vendor="other",
            app_token=DEMO,
        ),
        ("adjust", "Abc123token"): App(
            workspace_id="ws_\N{SNOWMAN}",
            vendor="adjust",
            app_token="A" + DEMO[1:],
            events={"a.b": "c"},
        ),
    }


APP = "$.workspaces[0].apps[0]"
WRONG: dict[str, tuple[str | bytes, str]] = {
    "not TOML": ("[[workspaces]]\nid == 1", "line 2"),
    "half a file": (GOOD[:-20], "end of document"),
    "not UTF-8": (app().encode() + b"# \xff", "0xff"),
    "a key twice": (app('keep = []\nkeep = ["x"]'), "line 7"),
    "deep nesting": ("x = " + "[" * 100_000, ""),
    "a number without end": ("x = " + "9" * 5000, ""),
    "nothing": ("", "workspaces"),
    "no workspace": ("workspaces = []", "$.workspaces"),
    "another root": ("workspaces = 1", "$.workspaces"),
    "an unknown key at the root": (f"other = 1\n{app()}", "other"),
    "an unknown key": (app("event = {}"), f"{APP}"),
    "an unknown key of a workspace": (f'[[workspaces]]\nname = "x"\n{app()}', "$.workspaces[0]"),
    "no ID": ("[[workspaces]]\n" + table(), "$.workspaces[0]"),
    "an empty ID": (app().replace('"ws"', '""'), "$.workspaces[0].id"),
    "a long ID": (app().replace('"ws"', f'"{"x" * 201}"'), "$.workspaces[0].id"),
    "an ID with NUL": (app().replace('"ws"', '"w\\u0000s"'), "$.workspaces[0].id"),
    "no apps": ('[[workspaces]]\nid = "ws"', "$.workspaces[0]"),
    "an empty list of apps": ('[[workspaces]]\nid = "ws"\napps = []', "$.workspaces[0].apps"),
    "no token": ('[[workspaces]]\nid = "ws"\n[[workspaces.apps]]\nvendor = "adjust"', APP),
    "a token of another type": (app(name="1"), f"{APP}.app_token"),
    "an unknown vendor": (app(vendor='"adjsut"'), f"{APP}.vendor"),
    "a vendor in upper case": (app(vendor='"Adjust"'), f"{APP}.vendor"),
    "events as a list": (app('events = ["g3mz3t"]'), f"{APP}.events"),
    "an event without a type": (app('events = { g3mz3t = "" }'), f"{APP}.events"),
    "an event of another type": (app("events = { g3mz3t = 1 }"), f"{APP}.events"),
    "an event type with NUL": (app('events = { a = "\\u0000" }'), f"{APP}.events"),
    "an activity as a text": (app('activities = "install"'), f"{APP}.activities"),
    "keep as a text": (app('keep = "tracker_name"'), f"{APP}.keep"),
    "keep with a space around": (app('keep = ["ok", "tracker "]'), f"{APP}.keep[1]"),
    "keep with a line break": (app('keep = ["tracker\\nname"]'), f"{APP}.keep[0]"),
    "a token with a line break": (app(name='"abc\\n"'), f"{APP}.app_token"),
    "a token with white space": (app(name='" abc"'), f"{APP}.app_token"),
    "a token that is a placeholder": (app(name='"{app_token}"'), f"{APP}.app_token"),
    "an event with white space": (app('events = { "a " = "b" }'), f"{APP}.events"),
    "an event that is a placeholder": (app('events = { "{event}" = "b" }'), f"{APP}.events"),
    "a type with a line break": (app('events = { a = "b\\n" }'), f"{APP}.events"),
    "an activity with white space": (app('activities = { "\\ta" = "b" }'), f"{APP}.activities"),
    "an ID with a line break": (app().replace('"ws"', '"ws\\n"'), "$.workspaces[0].id"),
    "an ID with white space": (app().replace('"ws"', '"ws "'), "$.workspaces[0].id"),
    "ignored and mapped": (
        app('events = { a = "b" }\nignore = ["x", "a"]'), f"{APP}.ignore[1]",
    ),
    "ignored and mapped as activity": (
        app('activities = { "a:b" = "c" }\nignore = ["a:b"]'), f"{APP}.ignore[0]",
    ),
    "an empty list of names": (app("stable_id = [[]]"), f"{APP}.stable_id[0]"),
    "lists within lists": (app('stable_id = [[["a"]]]'), f"{APP}.stable_id[0]"),
    "the secret in a list of names": (app('stable_id = [["a", "secret"]]'), f"{APP}.stable_id[0]"),
    **{
        f"{name} left out": (app(f'omit = ["x", "{name}"]'), f"{APP}.omit[1]")
        for name in (
            "app_token", "created_at", "event_token", "activity_kind", "revenue", "currency",
        )
    },
    "two IDs for one setting": (
        app() + app(name='"b"').replace('"ws"', '"WS"'), "$.workspaces[1].id",
    ),
    "keep with an empty name": (app('keep = [""]'), f"{APP}.keep[0]"),
    "the secret is kept": (app('keep = ["tracker_name", "secret"]'), APP),
    "the secret as a stable ID": (app('stable_id = ["secret"]'), APP),
    "an app twice": (app() + table(), "$.workspaces[0].apps[1].app_token"),
    "an app of two workspaces": (app() + app(), "$.workspaces[1].apps[0].app_token"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "place"), WRONG.values(), ids=WRONG)
def test_wrong_file_is_refused(text: str | bytes, place: str) -> None:
    """A wrong file is refused as a whole, in one line that names the place in it."""
    raw = text.encode() if isinstance(text, str) else text
    with pytest.raises(WorkspacesError) as raised:
        decode(raw, VENDORS)
    line = str(raised.value)
    assert place in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "words"),
    [("missing", "No such file"), ("folder", "directory"), ("huge", "larger than")],
)
def test_unreadable_file_is_refused_in_one_line(tmp_path: Path, kind: str, words: str) -> None:
    """A path that is missing, a folder or too large is refused in the same way."""
    path = tmp_path / "workspaces.toml"
    if kind == "folder":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(workspaces_file.FILE_MAX_BYTES + 1)
    for attempt in (read, Workspaces):
        with pytest.raises(WorkspacesError, match=rf"^[^\n]*{words}[^\n]*$"):
            attempt(path, VENDORS)


def test_poll_allocates_no_more_than_the_file(tmp_path: Path) -> None:
    """Each second's poll takes the size of the file and a small buffer, also of an empty one."""
    for text in ("", app()):
        path = written(tmp_path / "workspaces.toml", text)
        tracemalloc.start()
        try:
            assert workspaces_file.read_bytes(path) == text.encode()
            assert workspaces_file.look(path)[1] == len(text)
            assert tracemalloc.get_traced_memory()[1] < len(text) + 64 * 1024
        finally:
            tracemalloc.stop()


def test_app_is_found_by_its_exact_name_only(tmp_path: Path) -> None:
    """Vendor and token both count, exactly; an empty token is no app's."""
    found = Workspaces(written(tmp_path / "workspaces.toml", GOOD), VENDORS)
    assert found.find("adjust", "abc123token") is not None
    for vendor, token in (("adjust", "ABC123DEMO"), ("third", "abc123token"), ("other", "")):
        assert found.find(vendor, token) is None
    assert found.find("adjust", None) is None


def written(path: Path, text: str | bytes) -> Path:
    """The file, with other contents."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A workspaces file with the app `old`."""
    return written(tmp_path / "workspaces.toml", app(name='"old"'))


@asynccontextmanager
async def watched(path: Path) -> AsyncIterator[Workspaces]:
    """The workspaces of a file while it is being watched; fails if the watch ended."""
    WORKSPACES_REFUSED.set(0)
    found = Workspaces(path, VENDORS)
    task = asyncio.create_task(found.watch())
    try:
        yield found
        assert not task.done(), task.exception()
    finally:
        task.cancel()


async def within_promise(happened: Callable[[], bool]) -> None:
    """Return when something has happened; fails when it took longer than promised."""
    deadline = time.monotonic() + PROMISE_S
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls the file ten times as often."""
    monkeypatch.setattr(workspaces, "POLL_S", 0.1)


def is_refused() -> bool:
    """Whether the metric reports the file on disk as refused."""
    return bool(WORKSPACES_REFUSED._value.get())


async def test_change_is_used_within_five_seconds(path: Path) -> None:
    """A changed file is used within five seconds, at the product's own pace."""
    async with watched(path) as found:
        loaded = WORKSPACES_LOADED._value.get()
        written(path, app(name='"new"'))
        await within_promise(lambda: found.find("adjust", "new") is not None)
        assert found.find("adjust", "old") is None
        assert WORKSPACES_LOADED._value.get() > loaded
        assert not is_refused()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "name", ["not TOML", "not UTF-8", "an app twice", "deep nesting", "nothing"]
)
async def test_broken_change_is_not_used(
    path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that does not decode is refused and logged once; the next valid one is used."""
    async with watched(path) as found:
        written(path, WRONG[name][0])
        await within_promise(is_refused)
        assert found.find("adjust", "old") is not None
        await asyncio.sleep(3 * workspaces.POLL_S)
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        written(path, app(name='"new"'))
        await within_promise(lambda: found.find("adjust", "new") is not None)
        assert not is_refused()


@pytest.mark.usefixtures("quick")
async def test_missing_file_changes_nothing(path: Path) -> None:
    """Without a file the last valid one stays in use, and its return ends the alarm."""
    async with watched(path) as found:
        await asyncio.to_thread(path.rename, path.with_suffix(".bak"))
        await within_promise(is_refused)
        assert found.find("adjust", "old") is not None
        await asyncio.to_thread(path.with_suffix(".bak").rename, path)
        await within_promise(lambda: not is_refused())
        assert found.find("adjust", "old") is not None


@pytest.mark.usefixtures("quick")
async def test_half_written_file_is_not_used(path: Path) -> None:
    """A file that grows meanwhile is not used before it is whole, though it decodes."""
    async with watched(path) as found:
        text = app(name='"half"')
        for number in range(100):
            text += table(name=f'"app{number}"')
            written(path, text)
            await asyncio.sleep(workspaces.POLL_S / 20)
            assert found.find("adjust", "half") is None
        written(path, text + table(name='"whole"'))
        await within_promise(lambda: found.find("adjust", "whole") is not None)
        assert not is_refused()


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A file of a ConfigMap: a link into a folder that is a link itself."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        written(tmp_path / name / "workspaces.toml", app(name=f'"{name}"'))
    (tmp_path / "..data").symlink_to("old")
    (tmp_path / "..data_tmp").symlink_to("new")
    (tmp_path / "workspaces.toml").symlink_to("..data/workspaces.toml")
    return tmp_path / "workspaces.toml"


@pytest.mark.usefixtures("quick")
async def test_swapped_symbolic_link_is_a_change(mounted: Path) -> None:
    """Kubernetes swaps the folder behind the file, and the file's own link stays the same."""
    async with watched(mounted) as found:
        assert found.find("adjust", "old") is not None
        new, data = (mounted.with_name(name) for name in ("..data_tmp", "..data"))
        await asyncio.to_thread(new.rename, data)
        await within_promise(lambda: found.find("adjust", "new") is not None)


def written_unnoticed(path: Path, text: str) -> None:
    """Give a file other contents of the same size, and the time that it had."""
    before = path.stat()
    written(path, text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


@pytest.mark.usefixtures("quick")
async def test_change_of_the_same_time_and_size_is_found(path: Path) -> None:
    """A change is found in the contents of the file, not in its size or time."""
    async with watched(path) as found:
        written_unnoticed(path, app(name='"new"'))
        await within_promise(lambda: found.find("adjust", "new") is not None)
