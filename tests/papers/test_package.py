"""The package: the contents of an installation, and the licence."""

import re
import shutil
import subprocess
import sys
import tomllib
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from zipfile import ZipFile

import pytest

from app.version import VERSION
from bench.testbed.ports import free_port
from bench.testbed.process import ROOT, inherited
from tests.services.test_dev import WRITTEN, paste, running

PACKAGES = ("app", "adapters", "sinks")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built without a network from a copy of the repository."""
    folder = tmp_path_factory.mktemp("package")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *options, str(source)], env=inherited(), check=True)
    (built,) = folder.glob("*.whl")
    return built


def metadata(wheel: Path) -> Message:
    """The metadata of the wheel."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(archive.read(name))


def test_wheel_has_version_and_license(wheel: Path) -> None:
    """The metadata have the one version, and the licence as an expression and as a file."""
    found = metadata(wheel)
    assert (found["Name"], found["Version"]) == ("flokit-gateway", VERSION)
    assert found["License-Expression"] == "Apache-2.0"
    assert found.get_all("License-File") == ["LICENSE"]
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/LICENSE"))
        assert archive.read(name) == (ROOT / "LICENSE").read_bytes()


def test_wheel_has_every_file_of_the_product(wheel: Path) -> None:
    """Modules, migrations and the markers of typed packages are in it, and no others."""
    suffixes = {".py", ".sql", ".typed"}
    files = (path for name in PACKAGES for path in (ROOT / name).rglob("*"))
    wanted = {str(path.relative_to(ROOT)) for path in files if path.suffix in suffixes}
    with ZipFile(wheel) as archive:
        assert {name for name in archive.namelist() if ".dist-info/" not in name} == wanted
    assert {f"{name}/py.typed" for name in PACKAGES} <= wanted


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installation, without its dependencies."""
    folder = tmp_path_factory.mktemp("installed")
    install = [*PIP, "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel)]
    subprocess.run(install, env=inherited(), check=True)
    return folder


def test_console_script_is_the_gateway(installed: Path, tmp_path: Path) -> None:
    """`flokit-gateway` runs the installed code, under its own name."""
    for argument, said in (("--version", f"flokit-gateway {VERSION}\n"), ("--help", "usage: ")):
        ended = subprocess.run(
            [str(installed / "bin/flokit-gateway"), argument],
            cwd=tmp_path,
            env=inherited() | {"PYTHONPATH": str(installed)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, "")
        assert ended.stdout.startswith(said)
        assert "flokit-gateway" in ended.stdout.splitlines()[0]


def test_console_script_runs_dev(installed: Path, tmp_path: Path) -> None:
    """With the extra `embedded`, an installation runs `dev` without the repository."""
    program = [str(installed / "bin/flokit-gateway")]
    settings = {"PYTHONPATH": str(installed)}
    with running(tmp_path, free_port(), settings, program) as lines:
        assert paste(lines["curl"]) == WRITTEN


def test_license_is_apache_2() -> None:
    """The text is the standard's, whole, with the line of the copyright filled in."""
    text = (ROOT / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    for title in (
        "TERMS AND CONDITIONS FOR USE",
        "END OF TERMS AND CONDITIONS",
        "APPENDIX: How to",
    ):
        assert text.count(title) == 1
    assert re.findall(r"^   (\d)\. [A-Z]", text, re.MULTILINE) == list("123456789")
    assert re.findall(r"^ *Copyright (.*)$", text, re.MULTILINE) == ["2026 The FloKit authors"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
