"""The embedded servers before any of them has started."""

import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from app.dev import programs as embedded_programs
from app.dev.embedded import EmbeddedError, Server, unpack


def test_stopping_a_server_that_never_started_is_harmless(tmp_path: Path) -> None:
    """Stopping and killing a server that does not run is harmless."""
    with ThreadPoolExecutor(1) as spawner:
        server = Server(
            tmp_path, tmp_path / "log", ["true"], lambda _: False, signal.SIGTERM, 1, spawner
        )
        server.stop()
        server.kill()
        with pytest.raises(EmbeddedError, match="never started"):
            server.pid  # noqa: B018 - asking is the test


def test_interrupted_build_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half-unpacked programs are never taken for complete, and the next build removes them."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def interrupted(_packages: object, _release: object, workshop: Path, _root: Path) -> None:
        (workshop / "root").mkdir()
        shutil.copytree(workshop, workshop.with_name(f"{workshop.name}x"))  # as kill -9 leaves it
        raise KeyboardInterrupt

    monkeypatch.setattr(embedded_programs, "_build", interrupted)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            unpack(["hello"])
        left = [path for path in (tmp_path / "flokit-gateway").iterdir() if path.is_dir()]
        assert len(left) == 1
