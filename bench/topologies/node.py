"""A node of a Patroni cluster: Patroni and its PostgreSQL, as one machine would run them."""

import os
import shutil
from pathlib import Path
from signal import SIGKILL
from typing import NamedTuple

from app.dev.processes import run
from app.dev.programs import Programs, unpack
from bench.testbed.client import fetch
from bench.testbed.ports import free_port
from bench.testbed.process import OK, ROOT, Program, as_nobody
from bench.topologies import subreaper
from bench.topologies.servers import PASSWORD

DOCUMENTED = ROOT / "docs/high-availability/patroni.yml"
PACKAGES = ("patroni", "python3-etcd", "etcd-server", "etcd-client")
VERSION_TIMEOUT_S = 60.0
REST_TIMEOUT_S = 2.0
# Read after the documented file: small servers, and the commit times that the oracle compares.
SMALL = """\
bootstrap:
  dcs:
    postgresql:
      parameters:
        {shared_buffers: 64MB, jit: 'off', track_commit_timestamp: 'on', log_timezone: UTC}
  initdb: [{encoding: UTF8}, {locale: C}, {auth: scram-sha-256}, data-checksums, no-sync]
postgresql: {parameters: {unix_socket_directories: ''}}
"""


class Executables(NamedTuple):
    """Debian's packages, unpacked: PostgreSQL, and the folder of Patroni and etcd."""

    postgres: Programs
    root: Path

    @property
    def description(self) -> str:
        """The programs and their versions, in one line."""
        patroni, _, version = run(
            [*self.patroni(), "--version"], timeout_s=VERSION_TIMEOUT_S
        ).partition(" ")
        etcd = run([str(self.root / "usr/bin/etcd"), "--version"], timeout_s=VERSION_TIMEOUT_S)
        return (
            f"{patroni.title()} {version.strip()}, {etcd.splitlines()[0].replace(' Version:', '')}"
        )

    def patroni(self, command: str = "patroni") -> list[str]:
        """Return the beginning of a command of Patroni, in Debian's Python."""
        return [str(self.root / "usr/bin/python3"), str(self.root / "usr/bin" / command)]


def find_executables(postgres: Programs) -> Executables:
    """Return the programs; raises EmbeddedError where Debian's packages are not available."""
    return Executables(postgres, unpack(PACKAGES))


class Node:
    """A machine of the topology: Patroni and its PostgreSQL, which end together."""

    def __init__(self, name: str, folder: Path, programs: Executables, etcd: str) -> None:
        self.name, self.folder = name, folder
        self.log = folder / "patroni.log"
        self.port, self.rest_port = free_port(), free_port()
        self._programs, self._etcd = programs, etcd
        self._program: Program | None = None
        self._power: int | None = None  # closed, it kills every process of the node

    @property
    def environ(self) -> dict[str, str]:
        """The settings that the documented file leaves to the environment."""
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "LC_ALL": "C",
            "PATRONI_NAME": self.name,
            "PATRONI_ETCD3_HOSTS": self._etcd,
            "PATRONI_RESTAPI_LISTEN": f"127.0.0.1:{self.rest_port}",
            "PATRONI_RESTAPI_CONNECT_ADDRESS": f"127.0.0.1:{self.rest_port}",
            "PATRONI_RESTAPI_PASSWORD": PASSWORD,
            "PATRONI_POSTGRESQL_LISTEN": f"127.0.0.1:{self.port}",
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"127.0.0.1:{self.port}",
            "PATRONI_POSTGRESQL_DATA_DIR": str(self.folder / "data"),
            "PATRONI_POSTGRESQL_BIN_DIR": str(self._programs.postgres.bin_folder),
            "PATRONI_POSTGRESQL_PGPASS": str(self.folder / "pgpass"),
            "PATRONI_SUPERUSER_PASSWORD": PASSWORD,
            "PATRONI_REPLICATION_PASSWORD": PASSWORD,
        }

    def configure(self, overrides: str) -> None:
        """Write the files of Patroni: the documented one, and those of a run."""
        conf = self.folder / "conf"
        conf.mkdir(parents=True)
        shutil.copy(DOCUMENTED, conf / "1-documented.yml")
        (conf / "2-small.yml").write_text(SMALL)
        (conf / "3-overrides.yml").write_text(overrides)

    def start(self) -> None:
        """Start Patroni, which starts PostgreSQL in the role that etcd gives it."""
        theirs, self._power = os.pipe()
        reaper = [str(self._programs.root / "usr/bin/python3"), subreaper.__file__]
        command = [*reaper, str(theirs), *self._programs.patroni(), str(self.folder / "conf")]
        self._program = Program(
            as_nobody(command),
            self.log,
            environ=self.environ,
            pass_fds=[theirs],
        )
        self._program.start()
        os.close(theirs)

    def kill(self) -> None:
        """Kill every process of the node at once, as a loss of power does. Idempotent."""
        if self._power is not None:
            os.close(self._power)
            self._power = None
        if self._program is not None:
            self._program.wait()

    @property
    def has_ended(self) -> bool:
        """Whether Patroni has ended by itself."""
        program = None if self._power is None else self._program
        return program is not None and program.exit_code is not None

    def crash(self) -> None:
        """Kill PostgreSQL alone; Patroni goes on."""
        pid = int((self.folder / "data/postmaster.pid").read_text().split()[0])
        os.kill(pid, SIGKILL)

    def answers(self, path: str) -> bool:
        """Whether Patroni answers a check with 200, as `/primary` or `/sync`."""
        return fetch(self.rest_port, path, REST_TIMEOUT_S).status == OK
