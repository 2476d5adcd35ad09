"""The oracle finds gateways that break the contract on purpose, each for its reason."""

import subprocess
import sys
from pathlib import Path

import pytest

from bench.sabotage.catalogue import SABOTAGES
from bench.sabotage.run import run_sabotage
from bench.sabotage.sabotage import Found
from bench.testbed.console import Progress
from bench.testbed.process import ROOT

# One of each verdict but *leaked*; `make sabotage` runs all of them.
FEW = (
    "id-without-user-kind",
    "stable-ids-not-entered",
    "never-written",
    "never-refuses",
    "releases-claims-of-others",
    "commit-is-answered-500",
)


APPLY_ALL = """
from bench.sabotage.catalogue import SABOTAGES
for sabotage in SABOTAGES.values():
    sabotage.apply()
"""


@pytest.mark.services
@pytest.mark.parametrize("name", FEW)
async def test_sabotage_is_found(tmp_path: Path, name: str) -> None:
    """The oracle finds this gateway, by the verdict that its sabotage deserves."""
    sabotage = SABOTAGES[name]
    with Progress(sabotage.callbacks, "callbacks") as progress:
        findings = await run_sabotage(sabotage, progress, folder=tmp_path)
    assert sabotage.accepted & findings.reasons.keys(), findings.reasons


@pytest.mark.services
async def test_real_gateway_keeps_claims_of_others(tmp_path: Path) -> None:
    """The same run finds nothing at the real gateway."""
    sabotage = SABOTAGES["releases-claims-of-others"]
    with Progress(sabotage.callbacks, "callbacks") as progress:
        findings = await run_sabotage(sabotage, progress, folder=tmp_path, is_real=True)
    assert not findings.reasons


def test_sabotages_patch_parts_that_exist() -> None:
    """Each patch finds its place in the gateway, in a process of its own."""
    command = [sys.executable, "-W", "error", "-c", APPLY_ALL]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_few_have_different_verdicts() -> None:
    """The sabotages of the tests show each verdict of a run but *leaked*."""
    assert {SABOTAGES[name].found for name in FEW} == set(Found) - {Found.LEAKED}
