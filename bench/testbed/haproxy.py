"""A real HAProxy in front of gateways, or of a database, as an operator would set it up."""

import csv
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from app.dev.embedded import EmbeddedError, unpack
from bench.testbed.process import PATIENCE_S, POLL_S, ROOT, Program

STATS = {"global\n": "global\n    stats socket fd@{stats} level user\n"}


class Configuration(NamedTuple):
    """A documented configuration, and the replacements of its parts for the tests."""

    text: str
    here: Mapping[str, str]


def documented(page: str, first: str) -> str:
    """The block of a page that begins with these lines."""
    text = (ROOT / page).read_text()
    return text[text.index(first) :].partition("```")[0]


# The documented ones, on sockets of ours and with checks in quick succession. A machine that is
# busy may take its time to answer a check; a refused connection and a 503 count at once.
GATEWAYS = Configuration(
    documented("docs/deploying.md", "global\n    tune.bufsize"),
    STATS
    | {
        "defaults\n": "defaults\n    timeout check 20s\n",
        "bind :8080": "bind fd@{door}",
        "inter 1s": "inter 50ms",
        "    server one 127.0.0.1:8001\n    server two 127.0.0.1:8002\n": "",
    },
)
DATABASE = Configuration(
    documented("docs/deploying-database.md", "global\n    maxconn"),
    STATS
    | {
        "bind :5432": "bind fd@{door}",
        "inter 1s": "inter 100ms",
        "    server one 10.0.0.1:5432\n    server two 10.0.0.2:5432\n": "",
    },
)
PATRONI = Configuration(
    (ROOT / "docs/high-availability/haproxy.cfg").read_text(),
    STATS
    | {
        "bind :5432": "bind fd@{door}",
        "    server one 10.0.0.11:5432 check port 8008\n": "",
        "    server two 10.0.0.12:5432 check port 8008\n": "",
        "    server three 10.0.0.13:5432 check port 8008\n": "",
    },
)


def cells(servers: Mapping[str, int], path: Path) -> Configuration:
    """The documented one for cells: the map at `path`, and a gateway for each of two cells."""
    settings = documented("docs/deploying.md", "global\n    tune.bufsize").partition("frontend ")[0]
    text = settings + documented("docs/cells.md", "frontend callbacks").replace("1s", "50ms")
    one, two = ("server one 127.0.0.1:8001", "server two 127.0.0.1:8002")
    here = {
        written: f"server {name} 127.0.0.1:{port}"
        for written, (name, port) in zip((one, two), servers.items(), strict=True)
    }
    here |= {"/etc/haproxy/cells.map": str(path), "bind :8080": "bind fd@{door}"}
    return Configuration(text, STATS | {"defaults\n": "defaults\n    timeout check 20s\n"} | here)


def find_haproxy() -> Path:
    """The program: Debian's, or else the host's. Raises `EmbeddedError`."""
    try:
        return unpack(["haproxy"]) / "usr/sbin/haproxy"
    except EmbeddedError:
        found = shutil.which("haproxy")
        if found is None:
            raise
        return Path(found)


class HAProxy:
    """A running HAProxy: `port` is where the vendor calls."""

    def __init__(self, port: int, stats_port: int) -> None:
        self.port = port
        self._stats_port = stats_port

    def states(self) -> dict[str, str]:
        """HAProxy's state of each server: UP or DOWN, or on the way to it."""
        with socket.create_connection(("127.0.0.1", self._stats_port), PATIENCE_S) as stats:
            stats.sendall(b"show stat\n")
            said = b"".join(iter(lambda: stats.recv(65_536), b"")).decode()
        rows = csv.DictReader(said.removeprefix("# ").strip().splitlines())
        # Before its first check it takes every server for UP.
        checked = [row for row in rows if row["type"] == "2" and "INI" not in row["check_status"]]
        return {row["svname"]: row["status"] for row in checked}

    def wait_until(self, server: str, state: str) -> None:
        """Return when a server is in this state."""
        deadline = time.monotonic() + PATIENCE_S
        while (states := self.states()).get(server) != state:
            assert time.monotonic() < deadline, states
            time.sleep(POLL_S)


@contextmanager
def haproxy(
    folder: Path,
    servers: Mapping[str, int],
    program: Path,
    given: Configuration = GATEWAYS,
    checks: Mapping[str, int] | None = None,
) -> Iterator[HAProxy]:
    """Run HAProxy in front of the servers on these ports of this machine.

    `checks` are the ports of their health checks, where these are others.
    """
    words = {name: f" check port {port}" for name, port in (checks or {}).items()}
    config, log = folder / "haproxy.cfg", folder / "haproxy.log"
    with (
        # It inherits its sockets: no other program can take their ports.
        socket.create_server(("127.0.0.1", 0)) as door,
        socket.create_server(("127.0.0.1", 0)) as stats,
    ):
        text = given.text
        for written, used in given.here.items():
            assert text.count(written) == 1, f"not in the documented configuration: {written}"
            text = text.replace(written, used.format(door=door.fileno(), stats=stats.fileno()))
        lines = (
            f"    server {name} 127.0.0.1:{port}{words.get(name, '')}\n"
            for name, port in servers.items()
        )
        config.write_text(text + "".join(lines))
        process = Program(
            [str(program), "-db", "-f", str(config)],
            log,
            pass_fds=[door.fileno(), stats.fileno()],
        )
        with process:
            yield HAProxy(door.getsockname()[1], stats.getsockname()[1])
            assert process.exit_code is None, log.read_text()
