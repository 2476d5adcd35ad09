"""The pages for engineers: dependencies, decisions, and figures that a command writes."""

import re
import tomllib
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
BLOCK = re.compile(
    r"<!-- begin: python -m bench (\w+) -->\n(.*?)\n<!-- end: python -m bench \1 -->", re.DOTALL
)
# Each command of the bench that measures, with its page.
MEASURED = {
    "faults": "verification.md",
    "sabotage": "verification.md",
    "compare": "performance.md",
    "flood": "performance.md",
    "curves": "performance.md",
    "neighbours": "performance.md",
    "capacity": "capacity.md",
}


def test_each_dependency_has_a_purpose() -> None:
    """The table of dependencies names exactly those of the project."""
    page = (DOCS / "architecture.md").read_text()
    section = page.split("## Dependencies")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", section, re.MULTILINE)
    documented = {name for row in rows for name in re.findall(r"`([\w-]+)", row)}
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    required = {
        re.split(r"[^\w-]", requirement)[0]
        for group in (project["dependencies"], *extras)
        for requirement in group
    }
    assert documented == required


def test_index_of_decisions_is_complete() -> None:
    """The index lists each page, and each page has the same sections."""
    folder = DOCS / "decisions"
    pages = sorted(path.name for path in folder.glob("[0-9]*.md"))
    assert re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (folder / "README.md").read_text()) == pages
    for number, name in enumerate(pages, 1):
        text = (folder / name).read_text()
        assert text.startswith(f"# {number}. ")
        sections = re.findall(r"^## (.*)$", text, re.MULTILINE)
        assert sections == ["Context", "Decision", "Measured and tried", "Consequences"]
        assert len(text.splitlines()) <= 60


@pytest.mark.parametrize(("command", "name"), MEASURED.items())
def test_figures_name_their_commit(command: str, name: str) -> None:
    """A measured block stands once in its page, with commit and interpreter above its table."""
    blocks = dict(BLOCK.findall((DOCS / name).read_text()))
    head, _, table = blocks[command].partition("\n\n")
    assert re.search(r"[Cc]ommit `?[0-9a-f]{7,40}", head)
    assert "Python" in head
    assert "|---" in table
