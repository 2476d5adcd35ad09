"""A gateway as a process of its own, with or without a wire to each of its services."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from bench.testbed.caller import Caller
from bench.testbed.proxy import Proxy

ROOT = Path(__file__).parents[2]
SERVE = ("-m", "app", "serve")
# How long a process may take to start or to end on a busy machine.
PATIENCE_S = 30.0
POLL_S = 0.02


class BenchError(Exception):
    """A gateway did what no fault asked for; the message is one line."""


class Process:
    """A server as a process of its own: `python` with `arguments`, on a port that it keeps.

    `ready` is the path that answers 200 once it serves.
    """

    def __init__(
        self,
        port: int,
        environ: Mapping[str, str],
        log: Path,
        *,
        arguments: Sequence[str] = SERVE,
        ready: str = "/readyz",
    ) -> None:
        self.port = port
        self.log = log
        self._arguments = arguments
        self._environ = dict(environ) | {"PORT": str(port)}
        self._ready = f"GET {ready} HTTP/1.1\r\nHost: gateway\r\n\r\n".encode()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process ID."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How it ended; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    async def start(self) -> None:
        """Start it, and return when it is ready; raises BenchError."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - starts in a millisecond
                bound([sys.executable, *self._arguments]),
                cwd=ROOT,
                env={"PATH": os.environ.get("PATH", os.defpath)} | self._environ,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + PATIENCE_S
        while not await self._is_ready():
            if self.exit_code is not None or time.monotonic() > deadline:
                raise BenchError(f"a gateway does not become ready, see {self.log}")
            await asyncio.sleep(POLL_S)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def wait(self) -> int:
        """Return the exit code when it has ended; raises BenchError if it does not."""
        deadline = time.monotonic() + PATIENCE_S
        while self.exit_code is None:
            if time.monotonic() > deadline:
                raise BenchError(f"process {self.pid} does not end, see {self.log}")
            await asyncio.sleep(POLL_S)
        return self.exit_code

    def end(self) -> None:
        """End it in good order, and in any way after a while. Harmless when it has ended."""
        if self._process is None:
            return
        for number in (signal.SIGCONT, signal.SIGTERM):
            self.signal(number)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE_S)
        self._process.kill()
        self._process.wait()

    def memory_bytes(self) -> int:
        """Return the resident memory of the process."""
        status = Path(f"/proc/{self.pid}/statm").read_text()
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    async def _is_ready(self) -> bool:
        caller = Caller(self.port)
        answer = await caller.send(self._ready, timeout_s=1)
        caller.close()
        return answer.status == 200  # noqa: PLR2004


class Gateway(Process):
    """`python -m app serve`, or what `arguments` say instead, behind wires.

    `database` and `redis` are those through which alone it reaches them.
    """

    def __init__(
        self,
        port: int,
        environ: Mapping[str, str],
        log: Path,
        *,
        database: Proxy,
        redis: Proxy,
        arguments: Sequence[str] = SERVE,
    ) -> None:
        self.database = database
        self.redis = redis
        wires = {
            "DATABASE_URL": through(database, environ["DATABASE_URL"]),
            "REDIS_URL": through(redis, environ["REDIS_URL"]),
        }
        super().__init__(port, dict(environ) | wires, log, arguments=arguments)


def bound(command: list[str]) -> list[str]:
    """Return the command, to be ended with the thread that starts it, however that ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig=SIGKILL", *command] if setpriv else command


def as_nobody(command: list[str]) -> list[str]:
    """Return the same; under root as another user, for programs that refuse to run as root.

    It may read and write where only root may: the programs lie in root's cache.
    """
    if os.geteuid():
        return bound(command)
    user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--securebits=+no_setuid_fixup"]
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", "--pdeathsig=SIGKILL", *user, *rights, *command]


def through(proxy: Proxy, url: str) -> str:
    """Return the address of a server as it is behind the proxy."""
    parts = urlsplit(url)
    credentials, _, _ = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{credentials}@127.0.0.1:{proxy.port}"))
