"""The workspaces file: its valid contents, and how a running gateway follows its changes."""

import re
import tracemalloc
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

import adapters
from app import workspaces_file
from app.event import App
from app.workspaces import Workspaces
from app.workspaces_file import WorkspacesError, decode, read

ADJUST = adapters.load()["adjust"]


class Zone(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A part of the options of a made-up vendor."""

    name: str
    offset_h: int = 0


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a made-up vendor."""

    zone: Zone
    events: tuple[str, ...] = ()


VENDORS = {
    "adjust": ADJUST,
    "other": ADJUST,
    "optional": replace(ADJUST, options=Options, unfilled=re.compile(r"<\w+>")),
}
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
    "options of a vendor without any": (app("options = { a = 1 }"), f"{APP}.options"),
    "no options": (app(vendor='"optional"'), f"{APP}.options`"),
    "options of another type": (app("options = 1", vendor='"optional"'), f"{APP}.options`"),
    "an unknown option": (
        app('options = { zone = { name = "a" }, b = 1 }', vendor='"optional"'), f"{APP}.options`",
    ),
    "an option within options": (
        app("options = { zone = { name = 1 } }", vendor='"optional"'), f"{APP}.options.zone.name`",
    ),
    "the vendor's own placeholder": (
        app('events = { "<event>" = "b" }', vendor='"optional"'), f"{APP}.events`",
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
            assert workspaces_file.read_digest(path)[1] == len(text)
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


WITH_OPTIONS = """
[workspaces.apps.options]
zone = { name = "x", offset_h = -3 }
events = ["a", "b"]
"""


def test_options_are_in_the_vendors_own_struct(tmp_path: Path) -> None:
    """The options of an app are decoded by the vendor's struct, with its defaults."""
    text = app(WITH_OPTIONS, vendor='"optional"')
    found = Workspaces(written(tmp_path / "workspaces.toml", text), VENDORS).find("optional", "abc")
    assert found is not None
    assert found.options == Options(zone=Zone(name="x", offset_h=-3), events=("a", "b"))
    assert found == decode(text.encode(), VENDORS)["optional", "abc"]


def test_placeholder_of_another_vendor_is_a_name() -> None:
    """Only the vendor's own placeholder is refused."""
    for vendor, name in (("optional", "{event}"), ("adjust", "<event>")):
        text = app(
            f'events = {{ "{name}" = "b" }}' + (WITH_OPTIONS if vendor == "optional" else ""),
            vendor=f'"{vendor}"',
        )
        assert decode(text.encode(), VENDORS)[vendor, "abc"].events == {name: "b"}


def written(path: Path, text: str | bytes) -> Path:
    """The file, with other contents."""
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
