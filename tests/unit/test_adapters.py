"""Discovery of vendors."""

from pathlib import Path

import pytest

import adapters


def test_module_that_begins_with_an_underscore_is_no_vendor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Code shared by vendors may lie beside them: it cannot be called, and is not imported."""
    for name in ("_shared", "__main__"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError")
    monkeypatch.setattr(adapters, "__path__", [*adapters.__path__, str(tmp_path)])
    assert not [vendor for vendor in adapters.load() if vendor.startswith("_")]
