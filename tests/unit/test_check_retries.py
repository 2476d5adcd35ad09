"""`check`: the cost of an outage for each vendor, by how it sends callbacks again."""

from pathlib import Path

import pytest
from msgspec.structs import replace

import adapters
from app.commands import check
from app.commands.report import Report
from app.event import Retries
from app.settings import read_settings
from tests.gateways import environment

COSTS: list[tuple[Retries, str, list[str]]] = [
    (Retries.AFTER_5XX, "5", ["ok       vendor v: an event sent while the gateway does"]),
    (Retries.NEVER, "5", ["warning  vendor v: an event sent while the gateway"]),
    (
        Retries.AFTER_TIMEOUT, "5",
        ["warning  vendor v: an event sent while", "warning  vendor v: gives up after 2 s"],
    ),
    (Retries.AFTER_TIMEOUT, "2", ["warning  vendor v: an event sent while"]),
]  # fmt: skip


@pytest.mark.parametrize(("retries", "timeout_s", "lines"), COSTS)
def test_check_names_the_cost_of_an_outage(
    retries: Retries,
    timeout_s: str,
    lines: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A vendor that does not try again gets a warning, also for a commit that takes too long."""
    environ = environment("postgresql://h/d", "redis://h", tmp_path, COMMIT_TIMEOUT_S=timeout_s)
    vendor = replace(adapters.load()["adjust"], retries=retries)
    check._check_retries(Report(), read_settings(environ), "v", vendor)
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(lines)
    assert all(map(str.startswith, printed, lines)), printed
