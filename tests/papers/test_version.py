"""The version: every place that has it has the same one."""

import platform
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import yaml

from app.version import VERSION
from bench.testbed.client import get
from bench.testbed.process import ROOT, inherited
from tests.gateways import Process, Services

PYTHON = platform.python_version()
JOB = r"flokit-migrate-[\d-]*\d"
BUILD_INFO = f'flokit_build_info{{python="{PYTHON}",version="{VERSION}"}}'


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of the gateway to its end, without settings."""
    command = [sys.executable, "-m", "app", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=inherited(), capture_output=True, text=True, check=False
    )


def numbers(version: str) -> list[int]:
    """The numbers of a version, in order."""
    return [int(number) for number in re.findall(r"\d+", version)]


def test_command_line_has_the_version() -> None:
    """`--version` prints one line, and needs no settings."""
    ended = run("--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"flokit-gateway {VERSION}\n"


def test_first_line_of_check_has_the_version() -> None:
    """`check` begins with the version, also where it ends at once for want of settings."""
    ended = run("check")
    assert ended.returncode == 2
    assert ended.stdout == f"ok       version: {VERSION}, on Python {PYTHON}\n"


async def test_server_has_the_version(
    services: Services, database_url: str, tmp_path: Path
) -> None:
    """The log, `/readyz` and the metrics have the version; of two workers there is one series."""
    with Process(database_url, services.redis_url, tmp_path, WORKERS="2") as process:
        process.wait_until_ready()
        body = msgspec.json.decode((await get(process.port, "/readyz")).body)
        metrics = await process.metrics()
    assert body["version"] == VERSION
    found = {name: value for name, value in metrics.items() if name.startswith("flokit_build_info")}
    assert found == {BUILD_INFO: 1}
    lines = [msgspec.json.decode(line) for line in process.log.read_bytes().splitlines()]
    assert {line["version"] for line in lines if line["message"] == "serving"} == {VERSION}


def test_project_reads_the_version() -> None:
    """`pyproject.toml` has no version of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["project"]["dynamic"] == ["version"]
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"] == {"version": {"attr": "app.version.VERSION"}}


def test_image_label_has_the_version() -> None:
    """The image is labelled with the version of the code in it."""
    label = r'org\.opencontainers\.image\.version="([^"]*)"'
    assert re.findall(label, (ROOT / "Dockerfile").read_text()) == [VERSION]


def test_overlay_rolls_out_the_version() -> None:
    """The example overlay and the runbook have the image and the migration of this version."""
    overlay = yaml.safe_load((ROOT / "k8s/overlays/example/kustomization.yaml").read_text())
    assert [image["newTag"] for image in overlay["images"]] == [VERSION]
    patches = "".join(patch["patch"] for patch in overlay["patches"])
    job = f"flokit-migrate-{VERSION.replace('.', '-')}"
    assert re.findall(JOB, patches) == [job]
    runbook, upgrading = (ROOT / "k8s/README.md").read_text().split("\n## Upgrading\n")
    assert set(re.findall(r"flokit-gateway:([\d.]+\d)", runbook)) == {VERSION}
    assert set(re.findall(JOB, runbook)) == {job}
    (upgraded,) = set(re.findall(JOB, upgrading))
    assert numbers(upgraded) > numbers(VERSION)


def test_changelog_has_the_version() -> None:
    """The newest release in the changelog is this version."""
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d.*)\] - ", changelog, re.MULTILINE)[0] == VERSION
