"""`--document`: a command rewrites its own block of a page, and nothing else."""

from pathlib import Path

import pytest

from bench.testbed.documents import rewrite
from bench.testbed.machine import Machine, describe_interpreter
from bench.testbed.process import BenchError

MACHINE = Machine(
    processor="A processor",
    cores=2,
    memory_mb=1,
    kernel="Linux",
    interpreter=describe_interpreter(),
    servers="PostgreSQL 18",
    packages={},
    commit="0123456789abcdef+",
)
BEFORE, AFTER = "<!-- begin: python -m bench compare -->", "<!-- end: python -m bench compare -->"
OTHER = "<!-- begin: python -m bench curves -->\nkept\n<!-- end: python -m bench curves -->"


def test_block_gets_table_commit_and_interpreter(tmp_path: Path) -> None:
    """The block has the new table below its commit and interpreter; all other text stays."""
    page = tmp_path / "performance.md"
    page.write_text(f"text\n{BEFORE}\nold\n{AFTER}\nmore\n{OTHER}\n")
    rewrite(page, "compare", MACHINE, "| a |\n|---|\n| 1 |\n")
    assert page.read_text() == (
        f"text\n{BEFORE}\nCommit 0123456+; A processor, 2 cores; {describe_interpreter()}; "
        f"PostgreSQL 18.\n\n| a |\n|---|\n| 1 |\n{AFTER}\nmore\n{OTHER}\n"
    )
    again = page.read_text()
    rewrite(page, "compare", MACHINE, "| a |\n|---|\n| 1 |")
    assert page.read_text() == again


@pytest.mark.parametrize(
    "text",
    ["", BEFORE, AFTER, f"{AFTER}{BEFORE}", f"{BEFORE}{AFTER}" * 2, f"{BEFORE}{BEFORE}{AFTER}"],
)
def test_page_needs_exactly_one_block(tmp_path: Path, text: str) -> None:
    """A page with missing, repeated or unpaired markers is left unchanged."""
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(BenchError, match="not one"):
        rewrite(page, "compare", MACHINE, "new")
    assert page.read_text() == text


def test_interpreter_has_its_build() -> None:
    """The description of the interpreter names its version and its build."""
    assert describe_interpreter().startswith("CPython 3.")
    assert describe_interpreter().endswith(" build)")
