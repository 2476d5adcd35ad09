"""The sabotages: many, of parts that exist; and the verdict of the command on them."""

import argparse
from pathlib import Path

import pytest

from bench.faults.faults import FAULTS
from bench.sabotage import command, run
from bench.sabotage.catalogue import SABOTAGES
from bench.sabotage.command import HEADINGS, is_right
from bench.sabotage.run import Findings, run_sabotage
from bench.sabotage.sabotage import Found, Sabotage, patch
from bench.testbed.console import Progress
from bench.testbed.process import BenchError
from tests.unit.test_documents import MACHINE

PAGE = "<!-- begin: python -m bench sabotage -->\nold\n<!-- end: python -m bench sabotage -->\n"


def test_sabotages_are_many() -> None:
    """There are sabotages for every verdict, by faults that exist."""
    assert len(SABOTAGES) >= 50
    assert {sabotage.found for sabotage in SABOTAGES.values()} == set(Found)
    assert {fault for sabotage in SABOTAGES.values() for fault in sabotage.faults} <= set(FAULTS)


def test_patch_of_a_missing_part_fails() -> None:
    """A part that was renamed fails its sabotage, rather than leave the gateway whole."""
    with pytest.raises(AttributeError, match="has no renamed"):
        patch(Found, "renamed", None)


async def sabotage_command(*words: str) -> int:
    """Run the command with these arguments; returns its exit code."""
    parser = argparse.ArgumentParser()
    command.add_command(parser.add_subparsers())
    arguments = parser.parse_args(["sabotage", *words])
    code: int = await arguments.run(arguments)
    return code


def outcomes(monkeypatch: pytest.MonkeyPatch, *failing: str, missed: str = "") -> None:
    """Let the run of each sabotage find it, but for some that fail and one that is missed."""

    async def judged(sabotage: Sabotage, _: Progress, **__: object) -> Findings:
        if sabotage.name in failing:
            raise BenchError(f"{sabotage.name}: a step does not end in time")
        found = Findings(MACHINE)
        if sabotage.name != missed:
            found.add_others(sabotage.found, ["broken"])
        return found

    monkeypatch.setattr(command, "run_sabotage", judged)
    monkeypatch.setattr(command, "describe_machine", lambda _: MACHINE)


@pytest.mark.parametrize("error", [TimeoutError(), ExceptionGroup("tasks", [TimeoutError()])])
async def test_time_out_names_its_sabotage(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A step that does not end is no traceback, in a concurrent part of a run neither."""

    def time_out(**_: object) -> None:
        raise error

    monkeypatch.setattr(run, "open_environment", time_out)
    sabotage = SABOTAGES["never-settles"]
    with (
        Progress(sabotage.callbacks, "callbacks") as progress,
        pytest.raises(BenchError, match=r"^never-settles: a step does not end in time"),
    ):
        await run_sabotage(sabotage, progress)


async def test_command_goes_on_after_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that fails is listed as wrong, and the following ones are in the table."""
    outcomes(monkeypatch, "never-settles")
    assert await sabotage_command("never-settles", "never-written") == 1
    printed = capsys.readouterr().out
    assert "never-settles: a step does not end in time" in printed
    assert f"| never-written | {SABOTAGES['never-written'].sentence}" in printed


@pytest.mark.parametrize("words", [["never-settles"], ["--real"]])
async def test_part_of_the_table_is_not_documented(tmp_path: Path, words: list[str]) -> None:
    """The document is refused before anything runs."""
    page = tmp_path / "verification.md"
    page.write_text(PAGE)
    with pytest.raises(BenchError, match="--document"):
        await sabotage_command("--document", str(page), *words)
    assert page.read_text() == PAGE


@pytest.mark.parametrize("is_failure", [True, False])
async def test_table_is_documented_unless_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, is_failure: bool
) -> None:
    """A miss or a failure leaves the page as it was."""
    page = tmp_path / "verification.md"
    page.write_text(PAGE)
    failing = ["never-settles"] if is_failure else []
    outcomes(monkeypatch, *failing, missed="" if is_failure else "never-written")
    assert await sabotage_command("--document", str(page)) == 1
    assert page.read_text() == PAGE
    outcomes(monkeypatch)
    assert await sabotage_command("--document", str(page)) == 0
    assert HEADINGS[1] in page.read_text()


@pytest.mark.parametrize("found", Found)
def test_real_gateway_earns_no_verdict(found: Found) -> None:
    """Any verdict on the real gateway is wrong, unless the changed database explains it."""
    assert not is_right(SABOTAGES["never-settles"], {found}, is_real=True)
    assert is_right(SABOTAGES["never-settles"], {}, is_real=True)
    foreign_index = SABOTAGES["conflict-target-not-named"]
    assert is_right(foreign_index, {found}, is_real=True) is (found in {Found.STUCK, Found.FAILED})


def test_only_a_changed_database_explains_a_verdict() -> None:
    """No such verdict is the one that finds the sabotage."""
    for sabotage in SABOTAGES.values():
        assert not sabotage.unavoidable or sabotage.statements
        assert sabotage.accepted.isdisjoint(sabotage.unavoidable)
