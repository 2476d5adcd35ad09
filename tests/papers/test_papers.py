"""The documentation for people and machines, held against the code."""

import itertools
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from prometheus_client import Counter
from prometheus_client.metrics import MetricWrapperBase

from app.event import DropReason
from app.settings import ALLOWLIST_SUFFIX, SECRET_SUFFIX, Settings
from app.telemetry import metrics
from bench.faults.faults import FAULTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FOLDERS = ("app", "adapters", "sinks", "tests", "bench", "docs", "k8s", ".ci", ".github")


def texts(root: Path = ROOT) -> Iterator[Path]:
    """Every file that people write, wherever it is."""
    suffixes = {".py", ".md", ".toml", ".sql", ".yaml", ".yml", ".json", ""}
    paths = itertools.chain(root.iterdir(), *((root / name).rglob("*") for name in FOLDERS))
    yield from (
        path
        for path in paths
        if path.is_file() and path.suffix in suffixes and path.name != ".coverage"
    )


def test_file_of_coverage_is_no_text(tmp_path: Path) -> None:
    """The data of `coverage.py` is no file that people write."""
    for name in (".coverage", ".coverage.host.1.Xabc", "README.md", "Makefile"):
        (tmp_path / name).write_bytes(b"\xff")
    assert {path.name for path in texts(tmp_path)} == {"README.md", "Makefile"}


def test_no_open_work_is_left_in_the_code() -> None:
    """Open work stands in the issues, not in the code."""
    marker = re.compile(r"\b(TO[D]O|FIX[M]E|X[X]X|HAC[K]|WI[P])\b")
    assert [path for path in texts() if marker.search(path.read_text())] == []


def test_every_setting_is_documented() -> None:
    """The page on configuration lists exactly the settings that exist, each with its default."""
    page = (DOCS / "configuration.md").read_text()
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| *`?([^|`]*?)`? *\|", page, re.MULTILINE))
    for suffix in (SECRET_SUFFIX, ALLOWLIST_SUFFIX):
        assert f"`<VENDOR>{suffix}`" in page
        assert rows.pop(f"ADJUST{suffix}", None) is not None
    defaults = msgspec.structs.asdict(Settings())
    del defaults["vendors"]
    assert rows == {
        name.upper(): f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in defaults.items()
    }


def test_every_metric_is_documented() -> None:
    """The page on observability lists exactly the metrics, with their labels and drop reasons."""
    page = (DOCS / "observability.md").read_text()
    rows = {
        name: (set(re.findall(r"`(\w+)`", labels)), meaning)
        for name, labels, meaning in re.findall(
            r"^\| `(flokit_\w+)` \|([^|]*)\| (.*) \|$", page, re.MULTILINE
        )
    }
    declared = {
        metric._name + ("_total" if isinstance(metric, Counter) else ""): set(metric._labelnames)
        for metric in vars(metrics).values()
        if isinstance(metric, MetricWrapperBase)
    }
    assert {name: labels for name, (labels, _) in rows.items()} == declared
    meaning = rows["flokit_callbacks_dropped_total"][1]
    assert set(re.findall(r"`(\w+)`", meaning)) - {"dropped"} == {r.value for r in DropReason}


def test_every_promise_is_held_by_a_test() -> None:
    """Each failure mode names the tests and faults that hold it, and every fault has its row."""
    page = (DOCS / "failure-modes.md").read_text()
    rows = re.findall(r"^\|.*\| ([^|]*) \|$", page, re.MULTILINE)
    named = [set(re.findall(r"`(\w+)`", row)) for row in rows if row != "held by"]
    tests = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 20
    assert all(named)
    assert set().union(*named) <= tests | FAULTS.keys()
    assert FAULTS.keys() <= set().union(*named)


# Each lock file, and the extras that it holds beside the needs of production.
LOCKS = {
    "requirements.lock": (),
    "requirements-traces.lock": ("traces",),
    "requirements-run.lock": ("embedded",),
    "requirements-dev.lock": ("bench", "embedded", "test", "traces"),
}


@pytest.mark.parametrize("name", LOCKS)
def test_lock_files_trust_no_index(name: str) -> None:
    """Every package is pinned and has hashes, and no file names an index."""
    lines = (ROOT / name).read_text().splitlines()
    assert not [line for line in lines if "://" in line or line.startswith("--")]
    packages = pinned(name)
    for text in packages.values():
        assert re.match(r"\S+==\S+", text)
        assert "--hash=sha256:" in text
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras.keys() == set(LOCKS["requirements-dev.lock"])
    wanted, others = names(project["dependencies"]), set[str]()
    for extra, listed in extras.items():
        if extra in LOCKS[name]:
            wanted |= names(listed)
        else:
            others |= names(listed)
    assert wanted <= packages.keys()
    # Sanic itself needs `httptools`, which the bench names for a contender.
    assert not (others - wanted - {"httptools"}) & packages.keys()


def names(requirements: list[str]) -> set[str]:
    """The packages that requirements name."""
    return {re.split(r"[^\w.-]", requirement)[0] for requirement in requirements}


def pinned(name: str) -> dict[str, str]:
    """The requirements of a lock file, by package."""
    entries = re.sub(r"\\\n", "", (ROOT / name).read_text()).splitlines()
    return {re.split(r"[^\w.-]", entry)[0]: entry for entry in entries if entry[:1].strip("#")}


@pytest.mark.parametrize("name", LOCKS)
def test_tests_run_on_the_versions_of_production(name: str) -> None:
    """The tests run on the versions that production, and a first look, install."""
    development, production = pinned("requirements-dev.lock"), pinned(name)
    assert {package: development[package] for package in production} == production


def test_first_look_installs_no_more_than_it_needs() -> None:
    """`make run` installs the gateway and its servers, everything else the rest on top of them."""
    rules = dict(
        re.findall(r"^([\w$()/-]+):([^#=\n]*)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    )
    assert rules["$(VENV)/run-ready"].split() == ["requirements-run.lock"]
    assert rules["$(VENV)/ready"].split() == ["requirements-dev.lock", "$(VENV)/run-ready"]
    assert rules["run"].split() == ["$(VENV)/run-ready"]
    for target in (
        "check-code",
        "bench",
        "bench-quick",
        "bench-curves",
        "faults",
        "sabotage",
        "format",
    ):
        assert rules[target].split() == ["$(VENV)/ready"]


def test_every_release_is_in_the_changelog() -> None:
    """The changelog has every version, in the form that operators know."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert changelog.startswith("# Changelog\n")
    headings = re.findall(r"^## (.*)$", changelog, re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    for heading in headings[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d{2}-\d{2}", heading)
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.*)$", changelog, re.MULTILINE)) <= kinds
    released = [tuple(re.findall(r"\d+", heading)) for heading in headings[1:]]
    order = [tuple(map(int, numbers)) for numbers in released]
    assert order == sorted(order, reverse=True), "the newest comes first"
