"""The pages of the documentation: their links, and the files, commands and alerts they name."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app.dev.command import CALLBACK, DEFAULTS
from bench.testbed.process import ROOT

README = (ROOT / "README.md").read_text()
FOLDERS = ("app", "adapters", "sinks", "tests", "bench", "docs", "k8s", ".github")
# Reports of the bench are in no commit.
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*.md")))
    if ROOT / "bench/results" not in path.parents
)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def page_name(path: Path) -> str:
    """The place of a page in the repository."""
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """The text of a page, without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_commands_and_files_of_a_page_exist(path: Path) -> None:
    """Each `make` target and each file of ours that a page names is there."""
    text = path.read_text()
    assert set(re.findall(r"(?:`|\$ )make ([a-z-]+)", text)) <= TARGETS
    paths = re.findall(r"`((?:app|adapters|sinks|tests|k8s|bench|docs)/[\w./-]*)`", text)
    written = {"bench/results/"}  # by the bench
    assert [path for path in paths if not (ROOT / path).exists() and path not in written] == []


@pytest.mark.parametrize("path", PAGES, ids=page_name)
def test_links_of_a_page_lead_somewhere(path: Path) -> None:
    """The file of each link exists, and has the heading that is named."""
    for target in re.findall(r"\]\(([^)]+)\)", prose(path)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings}


def test_documentation_is_reached_from_the_readme() -> None:
    """Each page in `docs/` is linked from the README or from another page."""
    linked = {
        (path.parent / target.partition("#")[0]).resolve()
        for path in PAGES
        for target in re.findall(r"\]\(([^)#:]+)", prose(path))
    }
    assert [path for path in (ROOT / "docs").rglob("*.md") if path.resolve() not in linked] == []


def test_messages_name_pages_that_exist() -> None:
    """Each page of the documentation that the code names is there."""
    sources = [
        path
        for room in ("app", "adapters", "sinks", "bench")
        for path in (ROOT / room).rglob("*.py")
    ]
    named = {
        page for path in sources for page in re.findall(r"\bdocs/[\w/-]+\.md", path.read_text())
    }
    assert named
    assert [page for page in named if not (ROOT / page).exists()] == []


def test_alerts_are_documented() -> None:
    """The page on observability lists exactly the alerts that exist, each with its severity."""
    page = (ROOT / "docs/observability.md").read_text()
    documented = dict(re.findall(r"^\| `(FloKit\w+)` \| (\w+) \|", page, re.MULTILINE))
    rules = (ROOT / "k8s/monitoring/alerts.yaml").read_text()
    alerts = re.findall(r"- alert: (\w+)\n.*?severity: (\w+)\n", rules, re.DOTALL)
    assert documented == dict(alerts)


def test_commands_are_documented() -> None:
    """The page on configuration lists exactly the commands that `--help` lists."""
    page = (ROOT / "docs/configuration.md").read_text()
    words = [sys.executable, "-m", "app", "--help"]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    offered = re.findall(r"^    (\w+) ", ended.stdout, re.MULTILINE)
    assert set(re.findall(r"^\| `python -m app (\w+)` \|", page, re.MULTILINE)) == set(offered)


def test_callback_of_the_readme_is_that_of_make_run() -> None:
    """The `curl` command in the README is the one that `make run` prints."""
    secret = DEFAULTS["ADJUST_CALLBACK_SECRET"]
    assert f"$ curl 'http://127.0.0.1:8000/ingest/adjust?secret={secret}&{CALLBACK}'\n" in README


def test_readme_is_short() -> None:
    """A newcomer reads all of it: at most 150 lines."""
    assert len(README.splitlines()) <= 150
