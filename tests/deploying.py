"""The commands and statements of `docs/deploying-database.md`, by its headings."""

import re

from bench.testbed.process import ROOT

PAGE = "docs/deploying-database.md"


def _section(heading: str) -> str:
    return (ROOT / PAGE).read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def statements(heading: str) -> list[str]:
    """The SQL blocks of a section; a block may hold several statements."""
    return re.findall(r"```sql\n(.*?)```", _section(heading), re.DOTALL)


def commands(heading: str) -> list[str]:
    """The lines of a section that are typed into a shell."""
    return re.findall(r"^\$ (.*)$", _section(heading), re.MULTILINE)


def lines(heading: str) -> list[str]:
    """The lines of the blocks without a language: of configuration files, and addresses."""
    blocks: list[str] = re.findall(r"(?:^|\n)\n```\n(.*?)```", _section(heading), re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]
