"""Discovery of vendors, and the optional names of their modules."""

import json
from pathlib import Path
from time import thread_time

import msgspec
import pytest

import adapters
from app.event import UNFILLED, App, Callback, Event, Retries
from app.vendor import Vendor
from tests.adapter_cases import RECEIVED_AT

PARSE = "def parse(callback, app): ...\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules are vendors too."""
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    return tmp_path


def loaded(folder: Path, name: str, text: str) -> Vendor:
    """The vendor of a module with this text."""
    (folder / f"{name}.py").write_text(PARSE + text)
    return adapters.load()[name]


def test_module_that_begins_with_an_underscore_is_no_vendor(folder: Path) -> None:
    """Code shared by vendors may lie beside them: it cannot be called, and is not imported."""
    for name in ("_shared", "__main__"):
        (folder / f"{name}.py").write_text("raise AssertionError")
    assert not [vendor for vendor in adapters.load() if vendor.startswith("_")]


def test_vendor_without_optional_names_is_like_adjust(folder: Path) -> None:
    """Each optional name of a module has Adjust's behaviour as its default."""
    adjust = adapters.load()["adjust"]
    vendor = loaded(folder, "plain_vendor", "")
    assert msgspec.structs.replace(vendor, parse=adjust.parse) == adjust
    assert (vendor.unfilled, vendor.retries, vendor.options) == (UNFILLED, Retries.AFTER_5XX, None)


def test_optional_names_are_read_once(folder: Path) -> None:
    """A module says by optional names how its vendor sends, and which options its apps have."""
    vendor = loaded(
        folder,
        "full_vendor",
        "import re\nimport msgspec\nfrom app.event import Retries\n"
        "UNFILLED = re.compile('<.*>')\nSTABLE_ID = ('id', ('a', 'b'))\n"
        "RETRIES = Retries.AFTER_TIMEOUT\n"
        "class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):\n    cell: int\n",
    )
    assert vendor.unfilled.fullmatch("<a>")
    assert vendor.stable_id == ("id", ("a", "b"))
    assert vendor.retries is Retries.AFTER_TIMEOUT
    assert vendor.options is not None
    assert vendor.options.__struct_fields__ == ("cell",)


WRONG = {
    "UNFILLED": ("'{.*}'", "re.compile(b'x')", "None"),
    "STABLE_ID": ("'id'", "('id', 1)", "(('id', None),)", "None"),
    "RETRIES": ("'5xx'", "None", "True"),
    "Options": (
        "dict", "msgspec.Struct", "1", "msgspec.defstruct('Options', [], frozen=True)",
        "msgspec.defstruct('Options', [], forbid_unknown_fields=True)",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"), [(name, text) for name, texts in WRONG.items() for text in texts]
)
def test_optional_name_of_a_wrong_type_is_refused(folder: Path, name: str, text: str) -> None:
    """A name of another type is refused when the vendors are loaded, with its module."""
    module = f"wrong_{name.lower()}_{abs(hash(text))}"
    with pytest.raises(TypeError, match=rf"^adapters/{module}\.py: {name} must be "):
        loaded(folder, module, f"import re\nimport msgspec\n{name} = {text}\n")


def test_module_without_parse_is_refused(folder: Path) -> None:
    """A vendor's module has at least `parse`."""
    (folder / "no_parse.py").write_text("")
    with pytest.raises(TypeError, match=r"no_parse\.py has no function parse"):
        adapters.load()


MANY = {f"k{number}": 1 for number in range(60_000)}
OF_VENDOR: dict[str, dict[str, object]] = {
    "appsflyer": {"event_name": "e", "event_time": "2025-06-21 10:00:00", "event_value": MANY},
    "branch": {
        "name": "e", "timestamp": 1750500000000, "user_data": MANY, "event_data": json.dumps(MANY),
        "custom_data": dict(list(MANY.items())[:1_500]),
        "last_attributed_touch_data": dict(list(MANY.items())[:1_500]),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OF_VENDOR)
def test_members_beyond_number_do_not_hold_the_loop(name: str) -> None:
    """An object with very many members stays a text, and is parsed within 20 ms of CPU time."""
    app = App(workspace_id="w", vendor=name, app_token="a", events={"e": "e"})
    vendor, body = adapters.load()[name], json.dumps(OF_VENDOR[name]).encode()
    longest_s = []
    for _ in range(5):
        callback = Callback(query={"app_token": "a"}, received_at=RECEIVED_AT, body=body)
        before = thread_time()
        event = vendor.parse(callback, app)
        longest_s.append(thread_time() - before)
    assert isinstance(event, Event)
    assert event.properties.keys() & {"event_value", "user_data", "event_data"}
    assert len(event.properties) < 2_100
    assert min(longest_s) < 0.02
