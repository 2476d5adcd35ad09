"""Histories of two gateways: no promise is broken, and each sabotage breaks one."""

import os
import signal
import subprocess
import sys
from types import ModuleType

import pytest

from app.claims import scripts
from bench.sabotage.sabotage import applied
from bench.testbed.process import PATIENCE_S, ROOT
from sinks.timescale import statements
from tests.simulation import __main__, history
from tests.simulation.redis_server import UnknownScript
from tests.simulation.sabotage import SABOTAGES, find
from tests.simulation.sql import UnknownStatement

pytestmark = pytest.mark.no_cover  # which would take longer than the histories

SEEDS = 300
PARTS = 10
FAULTS = {
    "gateway killed", "gateway restarted", "gateway frozen", "gateway far from its database",
    "redis flushed", "redis away", "redis slow", "connection cut",
    "connection lost before a commit", "connection lost after a commit", "session terminated",
    "statements cancelled", "waits for the standby cancelled", "primary crashed",
    "standby promoted", "standby away", "snapshot taken", "snapshot put back",
    "error of the server", "rows swallowed by a trigger",
}  # fmt: skip
# One for each kind of verdict and each part of the path; the command has all of them.
QUICK = (
    "failure-is-settled",
    "releases-claims-of-others",
    "constant-generation",
    "repeats-before-commit",
    "unknown-is-written",
    "never-refuses",
    "duplicate-not-confirmed",
    "cancelled-wait-ignored",
    "stable-ids-apart",
    "copy-count-not-compared",
    "present-is-written",
    "no-unique-index",
)


@pytest.mark.parametrize("part", range(PARTS))
def test_no_history_breaks_a_promise(part: int) -> None:
    """Every event is stored once, and no answer is false; the trace of a failure is printed."""
    for seed in range(part, SEEDS, PARTS):
        result = history.run(seed)
        if not result.is_sound:
            __main__.print_history(result)
        assert result.is_sound, f"again: python -m tests.simulation --trace --from {seed}"
        assert result.answers > 0


@pytest.mark.parametrize("name", QUICK)
def test_sabotage_is_found(name: str) -> None:
    """A promise that is broken on purpose is found in some history."""
    found = find(name, range(__main__.SABOTAGE_SEEDS))
    assert found is not None
    assert history.run(found.result.seed).is_sound


def test_every_quick_sabotage_is_one() -> None:
    """The quick sabotages are some of all."""
    assert set(QUICK) < SABOTAGES.keys()


def test_seed_repeats_its_history_exactly() -> None:
    """A history has the same trace again, also in a process with other hashes of text."""
    seed = 7
    digest = history.run(seed).digest
    assert history.run(seed).digest == digest
    assert history.run(seed + 1).digest != digest
    for hashes in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--trace", "--from", str(seed)]
        environment = {**os.environ, "PYTHONHASHSEED": hashes}
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        assert f"digest {digest}: 0 broken promises" in ended.stdout


@pytest.mark.parametrize(
    ("module", "name", "unknown"),
    [(statements, "_INSERT", UnknownStatement), (scripts, "_SETTLE_AND_CLAIM", UnknownScript)],
)
def test_statement_without_a_model_ends_a_history(
    module: ModuleType, name: str, unknown: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement or script without a model raises: it is never passed over."""
    monkeypatch.setattr(module, name, f"{vars(module)[name]} ")
    with pytest.raises(unknown):
        list(map(history.run, range(10)))


def test_command_reports_its_histories(capsys: pytest.CaptureFixture[str]) -> None:
    """The command ends with the numbers of a run, and exit code 0."""
    assert __main__.main(["--seeds", "3", "--from", "40"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("3 histories, ")
    assert output.endswith("no promise was broken\n")


def test_failure_is_printed_with_the_command_that_repeats_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After a broken promise the command prints the history and its seed; exit code 1."""
    name = "repeats-before-commit"
    found = find(name, range(__main__.SABOTAGE_SEEDS))
    assert found is not None
    seed = found.result.seed
    with applied(SABOTAGES[name]):
        assert __main__.main(["--from", str(seed)]) == 1
    output = capsys.readouterr().out
    assert f"seed {seed}, digest {found.result.digest}: " in output
    assert "lied: duplicate without a durable row" in output
    assert output.endswith(f"again: python -m tests.simulation --trace --from {seed}\n")


def test_interrupt_ends_the_command_cleanly() -> None:
    """Ctrl-C ends a run with one line and exit code 130."""
    command = [sys.executable, "-u", "-m", "tests.simulation", "--hours", "1"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "Ctrl-C" in process.stderr.readline()  # it is running
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, output) == (130, "")
    assert errors.splitlines()[-1] == "interrupted: no history has failed"


def test_histories_reach_every_fault_and_answer() -> None:
    """Within few histories every kind of fault occurs, and every kind of answer is given."""
    texts: set[str] = set()
    for seed in range(40):
        texts |= {note.text.partition(":")[0] for note in history.run(seed).trace}
    for kind in ("written", "duplicate", "dropped", "500", "503"):
        assert f"answers {kind}" in texts
    assert texts >= FAULTS
    for moment in ("before COPY", "after COPY", "before COMMIT", "after COMMIT"):
        assert f"loses its connection {moment}" in texts
