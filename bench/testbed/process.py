"""Programs and servers as processes of their own, which end with the thread that starts them."""

import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGTERM, Signals
from typing import Self

from bench.testbed.client import fetch

ROOT = Path(__file__).parents[2]
SERVE = ("-m", "app", "serve")
# The limit of a start or an end on a busy machine.
PATIENCE_S = 60.0
POLL_S = 0.02
OK = 200


class BenchError(Exception):
    """The bench cannot go on; the message is one line."""


class Program:
    """A program as a process of its own; everything that it prints goes to `log`.

    A context manager, which starts the process and stops it. It can be started again after an end.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environ: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.log = log
        self._command = list(command)
        self._environ = None if environ is None else dict(environ)
        self._pass_fds = pass_fds
        self._popen: subprocess.Popen[bytes] | None = None

    def start(self, more: Mapping[str, str] | None = None) -> None:
        """Start the process, and return at once; `more` adds to its environment."""
        environ = self._environ if more is None else {**(self._environ or os.environ), **more}
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                bound(self._command),
                cwd=ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=self._pass_fds,
            )

    @property
    def pid(self) -> int:
        """The process ID."""
        return self._started.pid

    @property
    def exit_code(self) -> int | None:
        """The exit code; None while the process runs."""
        return self._started.poll()

    def signal(self, number: Signals) -> None:
        """Send a signal, unless the process has ended."""
        self._started.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Return the exit code after the end; raises BenchError."""
        try:
            return self._started.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise BenchError(f"process {self.pid} does not end, see {self.log}") from None

    def kill(self) -> None:
        """End the process at once."""
        self.signal(SIGKILL)
        self.wait()

    def stop(self, farewell: Signals = SIGTERM) -> None:
        """End the process in good order, after a while by force; harmless after its end."""
        if self._popen is None:
            return
        for number in (SIGCONT, farewell):
            self.signal(number)
        with suppress(BenchError):
            self.wait()
        self.kill()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Return when a condition holds; raises BenchError after an end or the time limit."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            # A test may have started the process by other means.
            has_ended = self._popen is not None and self._popen.poll() is not None
            if has_ended or time.monotonic() > deadline:
                last = " | ".join(self.log.read_text(errors="replace").splitlines()[-4:])
                raise BenchError(f"a process does not become ready, see {self.log}: {last}")
            time.sleep(POLL_S)

    def memory_bytes(self) -> int:
        """Return the resident memory of the process."""
        status = Path(f"/proc/{self.pid}/statm").read_text()
        return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._popen is not None, "not started"
        return self._popen

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class ServerProcess(Program):
    """An HTTP server on a port that it keeps: `python` with `arguments`.

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
        self.environ = dict(environ) | {"PORT": str(port)}
        self._ready = ready
        super().__init__([sys.executable, *arguments], log, environ=inherited() | self.environ)

    async def start_ready(self, more: Mapping[str, str] | None = None) -> None:
        """Start the server, and return when it is ready; raises BenchError."""
        # In the thread of the loop: the process ends with the thread that starts it.
        self.start(more)
        await asyncio.to_thread(self.wait_until_ready)

    def wait_until_ready(self) -> None:
        """Return when the server is ready; raises BenchError."""
        self.wait_until(lambda: self.status(self._ready) == OK)

    def status(self, path: str) -> int:
        """Return the status of a GET; 0 without an answer."""
        return fetch(self.port, path, PATIENCE_S).status


def inherited() -> dict[str, str]:
    """Return the part of the environment that a process inherits: no setting of the gateway."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}


def bound(command: Sequence[str]) -> list[str]:
    """Return a command that ends with the thread that starts it, however that ends."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig=SIGKILL", *command] if setpriv else list(command)


def as_nobody(command: Sequence[str]) -> list[str]:
    """Return such a command; under root as another user, for programs that refuse to run as root.

    It may read and write the files of root: the programs are in root's cache.
    """
    if os.geteuid():
        return bound(command)
    user = ["--reuid=65534", "--regid=65534", "--clear-groups", "--securebits=+no_setuid_fixup"]
    rights = ["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]
    return ["setpriv", "--pdeathsig=SIGKILL", *user, *rights, *command]
