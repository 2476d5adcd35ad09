"""Child processes: programs that run to their end, and servers."""

import os
import secrets
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30
POLL_S = 0.02
ERROR_LINES = 4

# Children do not inherit PGDATA, LD_PRELOAD or LANG.
ENVIRONMENT: Mapping[str, str] = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


class EmbeddedError(Exception):
    """The servers cannot run; the message is one line."""


@dataclass(eq=False)
class Server:
    """A server on a port of 127.0.0.1, which it keeps over restarts. A context manager."""

    folder: Path  # its data, and its working directory
    log: Path
    command: Sequence[str]  # without the last word, which is the port
    is_ready: Callable[[int], bool]  # whether the server on this port serves requests
    stop_signal: signal.Signals  # for a clean shutdown
    lock: int  # file descriptor, inherited: the file stays locked until the last process ends
    spawner: Executor  # a thread that outlives the server
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def pid(self) -> int:
        """The process ID of its main process, also after that has ended."""
        if self._process is None:
            raise EmbeddedError(f"{self.name} was never started")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it is ready; does nothing while it runs.

        Raises `EmbeddedError` with the end of the server's log, at the latest after
        START_TIMEOUT_S.
        """
        if self._process is not None and self._process.poll() is None:
            return
        deadline = time.monotonic() + START_TIMEOUT_S
        fixed_port = self.port
        while True:
            self.port = fixed_port or free_port()
            error = self._try_start(deadline)
            if error is None:
                return
            # Another process has just bound the port, or the processes and the shared memory of a
            # killed PostgreSQL have not vanished yet.
            if "in use" not in error or time.monotonic() > deadline:
                raise EmbeddedError(f"{self.name} does not start: {error}")
            time.sleep(POLL_S)

    def stop(self, stop_signal: signal.Signals | None = None) -> None:
        """Shut the server down, by default cleanly; kill it after STOP_TIMEOUT_S. Idempotent."""
        self.resume()
        self._signal(stop_signal or self.stop_signal, children=False)
        try:
            if self._process is not None:
                self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill all of its processes at once, as a crash of the machine does. Idempotent."""
        self.pause()
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        """Freeze the server: connections stay open, requests get no answer."""
        # The main process first, so that it forks no child that is missing in the list.
        self._signal(signal.SIGSTOP, children=False)
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume a paused server."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _try_start(self, deadline: float) -> str | None:
        """Start once; returns None when the server is ready, else the end of its log."""
        with self.log.open("ab") as log:
            log_start = log.tell()
            self._process = self.spawner.submit(self._spawn, log.fileno()).result()
        is_ready = False
        try:
            while self._process.poll() is None and time.monotonic() < deadline:
                is_ready = self.is_ready(self.port)
                if is_ready:
                    return None
                time.sleep(POLL_S)
        finally:
            if not is_ready:
                self.kill()
        log_text = self.log.read_bytes()[log_start:].decode(errors="replace")
        return _last_lines(log_text) or f"exit code {self._process.returncode}"

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, str(self.port)],
            cwd=self.folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at the terminal must not reach the server
            pass_fds=[self.lock],
        )

    def _signal(self, number: signal.Signals, *, children: bool = True) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        pids = [self.pid]
        # PostgreSQL forks a child for each connection, in a process group of its own.
        listed = Path(f"/proc/{self.pid}/task/{self.pid}/children")
        if children and listed.exists():
            pids += map(int, listed.read_text().split())
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def run(
    command: Sequence[str],
    *,
    timeout_s: float,
    stdin: str = "",
    environment: Mapping[str, str] = ENVIRONMENT,
) -> str:
    """Run a program to its end, and return its output.

    Raises `EmbeddedError` with the end of the output when the program is missing, fails, or exceeds
    its time-out.
    """
    # A file, not a pipe, which descendants that outlive the program would keep open.
    with tempfile.TemporaryFile("w+") as output:
        try:
            subprocess.run(
                command,
                check=True,
                timeout=timeout_s,
                env=environment,
                input=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"{command[0]} takes longer than {timeout_s:.0f} s") from None
        except subprocess.CalledProcessError as error:
            output.seek(0)
            reason = _last_lines(output.read()) or f"exit code {error.returncode}"
            raise EmbeddedError(f"{command[0]} fails: {reason}") from None
        except OSError as error:
            raise EmbeddedError(str(error)) from None
        output.seek(0)
        return output.read()


def _last_lines(text: str) -> str:
    return " | ".join(text.splitlines()[-ERROR_LINES:])


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no process listens, below the ephemeral ports.

    A client that keeps connecting to an ephemeral port without a listener ends up connected to
    itself.
    """
    while True:
        port = secrets.choice(range(15_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
