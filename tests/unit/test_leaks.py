"""The search for leaked secrets in files."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import leaks

# Not the secret itself: the search at the end of the run would find it too.
PLANTED = "planted-by-a-test"


def test_leak_in_a_file_is_found(tmp_path: Path) -> None:
    """A file is named that has the secret anywhere in it, or in its name."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "gateway.log").write_bytes(b"\0\xff" * 5_000 + PLANTED.encode() + b"\0")
    (tmp_path / "empty").touch()
    (tmp_path / "innocent").write_text("plant")
    assert list(leaks.in_files(tmp_path, PLANTED)) == [str(tmp_path / "deep" / "gateway.log")]
    (tmp_path / PLANTED).touch()
    assert f"a name in {tmp_path}" in leaks.in_files(tmp_path, PLANTED)


def test_folder_that_disappears_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server deletes the files of a dropped database while they are searched."""
    (tmp_path / "searched" / "dropped").mkdir(parents=True)
    (tmp_path / "searched" / "gateway.log").write_text(PLANTED)
    scandir = os.scandir

    def moves_first(folder: str | Path) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "dropped":
            (tmp_path / "searched" / "dropped").rename(tmp_path / "gone")
        return scandir(folder)

    monkeypatch.setattr("os.scandir", moves_first)
    found = list(leaks.in_files(tmp_path / "searched", PLANTED))
    assert found == [str(tmp_path / "searched" / "gateway.log")]
    assert (tmp_path / "gone").exists()
