"""The image: everything of it that can be tested without a Docker engine."""

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any, Self

import pytest
import yaml

import adapters
from app import workspaces_file
from app.__main__ import COMMANDS
from app.dev.embedded import EmbeddedError, unpack
from app.settings import Settings, read_settings
from bench.testbed.ports import free_port
from bench.testbed.process import ROOT, bound, inherited
from tests.gateways import Process, Services, environment

WRITTEN = {"received": 1, "written": 1, "duplicate": 0, "dropped": 0}
# Folders that every user may write to: the container has no such place.
FOR_ALL = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108
DOCKERFILE = (ROOT / "Dockerfile").read_text()
IGNORED = [line for line in (ROOT / ".dockerignore").read_text().split("\n") if line[:1].strip("#")]
BASE = re.compile(r"python:(\d+\.\d+)-slim-trixie( AS build)?")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# A mount in compose.yaml begins with a folder of this repository, or with a volume.
MOUNT = re.compile(r"(?P<source>[^:]+):(?P<target>/[^:]+)(:ro)?")


def steps(word: str) -> list[str]:
    """The arguments of each such instruction in the Dockerfile, each on one line."""
    text = re.sub(r"\\\n\s*", " ", DOCKERFILE)
    return re.findall(rf"^{word} (.*)$", text, re.MULTILINE)


def test_dockerfile_passes_hadolint() -> None:
    """Hadolint reports nothing."""
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    command = [str(hadolint), "--failure-threshold", "style", str(ROOT / "Dockerfile")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, "")


def test_image_runs_as_an_ordinary_user() -> None:
    """The last stage runs as a user by number, as Kubernetes requires, and installs nothing."""
    build, final = re.split(r"^FROM .*$", DOCKERFILE, flags=re.MULTILINE)[1:]
    assert steps("USER") == ["10001:10001"]
    assert "USER" in final
    assert "RUN" in build
    assert "RUN" not in final
    assert steps("ENTRYPOINT") == ['["python", "-m", "app"]']
    assert steps("CMD") == ['["serve"]']
    assert steps("EXPOSE") == [str(Settings().port)]


def test_image_has_a_tested_python() -> None:
    """Both stages have one version of Python, with which the workflow runs the tests too."""
    versions = [match[1] for match in map(BASE.fullmatch, steps("FROM")) if match]
    assert len(versions) == len(steps("FROM")) == 2
    (version,) = set(versions)
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yaml").read_text())
    assert version in workflow["jobs"]["test"]["strategy"]["matrix"]["python"]


def test_image_has_its_labels() -> None:
    """The image has the labels for name, description, version, licence and repository."""
    labels = dict(re.findall(r'org\.opencontainers\.image\.(\w+)="([^"]*)"', DOCKERFILE))
    assert labels.keys() == {"title", "description", "version", "licenses", "source"}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (labels["title"], labels["licenses"]) == (project["name"], project["license"])
    assert labels["source"] == "${SOURCE}"
    assert "SOURCE=" in steps("ARG"), "the repository's URL is the builder's to say"


def copied() -> list[str]:
    """The paths that the Dockerfile copies out of the repository, to the same ones."""
    (lock,) = (step for step in steps("ARG") if step.startswith("LOCK="))
    lines = [line.replace("${LOCK}", lock.removeprefix("LOCK=")) for line in steps("COPY")]
    return [line.split()[0] for line in lines if not line.startswith("--from")]


def test_image_has_the_whole_product() -> None:
    """Each part of the product is copied, and is let through by .dockerignore."""
    assert set(copied()) == {"requirements.lock", "LICENSE", "app", "adapters", "sinks"}
    first, *rules = IGNORED
    assert first == "*"
    let_through = {rule[1:] for rule in rules if rule.startswith("!")}
    assert let_through == {*copied(), "requirements-traces.lock"}
    for part in ("app", "adapters", "sinks"):
        files = [path for path in (ROOT / part).rglob("*") if path.suffix in (".py", ".sql")]
        assert files
        for path in files:
            name = path.relative_to(ROOT)
            assert is_let_through(name) != name.is_relative_to("app/dev"), name


def is_let_through(name: PurePath) -> bool:
    """Whether a file is in the build's context: the last rule for it or a folder of it decides."""
    verdict = True
    for rule in IGNORED:
        pattern = rule.removeprefix("!")
        places = [part.name for part in (name, *name.parents)]
        if not pattern.startswith("**/"):
            places = [str(part) for part in (name, *name.parents)]
        if any(fnmatchcase(place, pattern.removeprefix("**/")) for place in places):
            verdict = rule.startswith("!")
    return verdict


def interpreter() -> Path:
    """The interpreter of the image's version; where the host has none, that of the tests."""
    (version,) = {match[1] for match in map(BASE.fullmatch, steps("FROM")) if match}
    own = Path(sys.base_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}")
    # Several versions of pyenv lie beside each other; its command on the PATH may be for none.
    candidates = [own, *sorted(own.parents[2].glob(f"{version}*/bin/python{version}"))]
    if found := shutil.which(f"python{version}"):
        candidates.append(Path(found))
    for candidate in candidates:
        command = [str(candidate), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.stdout.strip() == version:
            return candidate
    return own


@pytest.fixture(scope="module")
def image() -> Iterator[Path]:
    """The folder of the image, made by the Dockerfile's own COPY and RUN lines."""
    # Not among the tests' own files, which only their user may read.
    with TemporaryDirectory(prefix="flokit-image-") as name:
        root = Path(name)
        root.chmod(0o755)
        folder, programs = root / "gateway", root / "bin"
        for part in map(ROOT.joinpath, copied()):
            for source in part.rglob("*") if part.is_dir() else (part,):
                copy = folder / source.relative_to(ROOT)
                if source.is_file() and is_let_through(source.relative_to(ROOT)):
                    copy.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, copy)
        programs.mkdir()
        (programs / "python").symlink_to(interpreter())
        path = f"{programs}:{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
        for line in steps("RUN"):
            subprocess.run(
                ["/bin/sh", "-euc", line], cwd=folder, env=os.environ | {"PATH": path}, check=True
            )
        yield folder


def test_locked_dependencies_are_enough(image: Path) -> None:
    """With the lock file's wheels alone every command finds its libraries; pip is not there."""
    commands = [f"app.commands.{name}" for name in COMMANDS if name != "dev"]
    ended = run(image, "-c", f"import {', '.join(commands)}, adapters; adapters.load()")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert not list((image / "venv/bin").glob("pip*"))


def run(image: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the Python of the image to its end."""
    command = [str(image / "venv/bin/python"), *arguments]
    return subprocess.run(
        command, cwd=image, env=inherited() | environ, capture_output=True, text=True, check=False
    )


async def test_image_has_every_command_but_dev(
    image: Path, services: Services, database_url: str, tmp_path: Path
) -> None:
    """Commands work without the development servers; `dev` is one line, and has its help."""
    assert not (image / "app/dev").exists()
    environ = environment(database_url, services.redis_url, tmp_path)
    for arguments in (["--version"], ["--help"], ["dev", "--help"], ["migrate"], ["check"]):
        ended = await asyncio.to_thread(run, image, "-m", "app", *arguments, **environ)
        assert (ended.returncode, ended.stderr) == (0, ""), ended.stdout
    ended = run(image, "-m", "app", "dev", **environ)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("dev is not in this image: ")
    assert ended.stderr.count("\n") == 1


def uids_in(folder: Path) -> set[int]:
    """The owners of all files in a folder."""
    owners = set()
    for path in folder.iterdir():
        with suppress(OSError):  # gone meanwhile
            owners.add(path.lstat().st_uid)
    return owners


class Contained(Process):
    """The image's own command, as user 10001, with write access to world-writable folders only."""

    def __init__(self, image: Path, database_url: str, redis_url: str, setpriv: str) -> None:
        super().__init__(database_url, redis_url, image.parent)
        self.environ = {"PATH": f"{image}/venv/bin", "HOME": "/nonexistent"} | self.environ
        self.image = image
        self.become = [setpriv, "--reuid=10001", "--regid=10001", "--clear-groups"]
        # It may read files of root, since the host's Python may be among them, but write nothing.
        self.become += ["--securebits=+no_setuid_fixup", "--no-new-privs"]
        self.become += ["--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"]

    def __enter__(self) -> Self:
        (entry,), (command,) = map(steps, ("ENTRYPOINT", "CMD"))
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                bound([*self.become, *json.loads(entry), *json.loads(command)]),
                cwd=self.image,
                env=self.environ,
                stdout=log,
                stderr=log,
            )
        return self

    def health(self, **changed: str) -> int:
        """The exit code of the image's health check."""
        check = json.loads(steps("HEALTHCHECK")[0].partition(" CMD ")[2])
        environ = self.environ | changed
        asked = [*self.become, *check]
        return subprocess.run(asked, env=environ, capture_output=True, check=False).returncode


async def test_image_serves_without_writing_a_file(
    image: Path, services: Services, database_url: str
) -> None:
    """As user 10001 it serves, its health check succeeds, and it drains, without a file written."""
    setpriv = shutil.which("setpriv")
    if os.geteuid() or setpriv is None:
        pytest.skip("only root can become user 10001")
    with Contained(image, database_url, services.redis_url, setpriv) as gateway:
        gateway.wait_until_ready()
        assert (await gateway.callback()).json == WRITTEN
        assert gateway.health() == 0
        assert gateway.health(PORT=str(free_port())) == 1
        assert [path for path in map(Path, FOR_ALL) if uids_in(path) & {10001}] == []
        gateway.signal(signal.SIGTERM)
        assert gateway.wait() == 0
    assert "error" not in gateway.log.read_text()


@pytest.fixture(scope="module")
def compose() -> str:
    """Debian's docker-compose, which reads a file without an engine."""
    try:
        return str(unpack(["docker-compose"]) / "usr/libexec/docker/cli-plugins/docker-compose")
    except EmbeddedError as why:
        pytest.skip(str(why))


def test_compose_accepts_the_file(compose: str) -> None:
    """Docker Compose accepts every word of compose.yaml."""
    command = [compose, "-f", str(ROOT / "compose.yaml"), "--profile=*", "config", "--quiet"]
    ended = subprocess.run(command, env=inherited(), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def mounts() -> list[tuple[str, str]]:
    """Source and target of each mount of the services."""
    found = [MOUNT.fullmatch(m) for s in SERVICES.values() for m in s.get("volumes", ())]
    return [(m["source"], m["target"]) for m in found if m]


def test_compose_mounts_only_existing_paths() -> None:
    """Every mounted path is in the repository, or a volume that is declared."""
    assert len(mounts()) == sum(len(s.get("volumes", ())) for s in SERVICES.values())
    for source, _ in mounts():
        if source.startswith("./"):
            assert (ROOT / source).exists(), source
        else:
            assert source in COMPOSE["volumes"]


def test_compose_binds_ports_to_this_machine() -> None:
    """Every port is bound to this machine, since every password is known."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert len(ports) == 5
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_sets_only_valid_settings() -> None:
    """The settings of gateway and migration exist and are valid, as are the files they name."""
    for name in ("gateway", "migrate", "gateway-ha", "migrate-ha"):
        environ = SERVICES[name]["environment"]
        known = {field.upper() for field in Settings.__struct_fields__}
        assert environ.keys() - {"ADJUST_CALLBACK_SECRET"} <= known
        read_settings(environ)
    file = Path(SERVICES["gateway"]["environment"]["WORKSPACES_FILE"])
    folder = {target: source for source, target in mounts()}[str(file.parent)]
    assert workspaces_file.read(ROOT / folder / file.name, adapters.load())


def test_compose_migrates_before_the_gateway_starts() -> None:
    """First the database is healthy, then it is migrated, then the gateway starts."""
    assert SERVICES["migrate"]["depends_on"] == {"timescaledb": {"condition": "service_healthy"}}
    assert SERVICES["gateway"]["depends_on"] == {
        "migrate": {"condition": "service_completed_successfully"},
        "redis": {"condition": "service_healthy"},
    }
    assert SERVICES["migrate"]["command"] == ["migrate"]
    for name in ("timescaledb", "redis"):
        assert SERVICES[name]["healthcheck"]["test"]
    for name in ("gateway", "migrate"):
        assert SERVICES[name]["read_only"] is True
        assert SERVICES[name]["build"] == "."
    # With several workers the metrics are kept in files.
    assert any(mount.startswith("/tmp:") for mount in SERVICES["gateway"]["tmpfs"])  # noqa: S108
