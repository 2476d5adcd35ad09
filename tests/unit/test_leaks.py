"""The search for leaked secrets in files."""

from pathlib import Path

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
