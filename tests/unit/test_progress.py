"""The progress of long commands: a bar on a terminal, lines elsewhere, nothing too often."""

import os
import pty

import pytest

from app.commands.progress import Progress


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress that is shown at each call."""
    monkeypatch.setattr("app.commands.progress.LINE_S", 0)
    monkeypatch.setattr("app.commands.progress.BAR_S", 0)


@pytest.mark.usefixtures("impatient")
def test_progress_is_a_line_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """In a log it is a line of numbers, of which the last has no time left."""
    with Progress(2_000) as progress:
        progress.show(500)
        progress.show(2_000)
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith("500 of 2,000 (25%), ")
    assert first.endswith(" left")
    assert last.startswith("2,000 of 2,000 (100%), ")
    assert last.endswith("/s")


@pytest.mark.usefixtures("impatient")
def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal it is one line, which is gone at the end."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", encoding="utf-8") as terminal:  # noqa: PTH123 - it has no path
        monkeypatch.setattr("sys.stderr", terminal)
        with Progress(2_000) as progress:
            progress.show(500)
        shown = ""
        while not shown.endswith("\r\x1b[K"):  # a terminal gives each write by itself
            shown += os.read(ours, 1_000).decode()
    os.close(ours)
    assert "[#####---------------]  25%  " in shown
    assert "\n" not in shown
    assert shown.index("[#") < shown.rindex("\r\x1b[K")


def test_progress_is_shown_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    """Calls in quick succession show nothing."""
    with Progress(10) as progress:
        for done in range(10):
            progress.show(done)
    assert capsys.readouterr().err == ""
