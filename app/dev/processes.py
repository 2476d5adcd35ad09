"""Processes of our own: programs that end by themselves, and servers that do not."""

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
LAST_WORDS_LINES = 4

# Nothing of ours (PGDATA, LD_PRELOAD, LANG) reaches the programs that we start.
ENVIRONMENT: Mapping[str, str] = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}


class EmbeddedError(Exception):
    """Says in one line why the servers cannot run."""


@dataclass(eq=False)
class Server:
    """A server on a port of 127.0.0.1, which it keeps over restarts. A context manager."""

    folder: Path  # its data, and its working directory
    log: Path  # gets all that it has to say
    command: Sequence[str]  # the port follows as the last word
    answers: Callable[[int], bool]  # does the server on this port take requests?
    farewell: signal.Signals  # ends it in good order
    lock: int  # a file that stays locked as long as one of its processes lives
    spawner: Executor  # starts it in a thread that outlives it
    port: int = 0
    _process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The program and its version."""
        return self.folder.name

    @property
    def pid(self) -> int:
        """The process ID of its main process, also after that has ended."""
        if self._process is None:
            raise EmbeddedError(f"{self.name} was never started")
        return self._process.pid

    def start(self) -> None:
        """Start the server, unless it runs, and wait until it answers; later on the same port.

        Raises `EmbeddedError` with the server's last words, at the latest after START_TIMEOUT_S.
        """
        if self._process is not None and self._process.poll() is None:
            return
        deadline = time.monotonic() + START_TIMEOUT_S
        fixed_port = self.port
        while True:
            self.port = fixed_port or free_port()
            last_words = self._attempt(deadline)
            if last_words is None:
                return
            # Somebody took the port just now, or a killed PostgreSQL has left processes and
            # shared memory that take a moment to vanish.
            if "in use" not in last_words or time.monotonic() > deadline:
                raise EmbeddedError(f"{self.name} does not start: {last_words}")
            time.sleep(POLL_S)

    def stop(self, farewell: signal.Signals | None = None) -> None:
        """End the server, after STOP_TIMEOUT_S in any way. Harmless when it ended.

        In good order, unless another `farewell` means something else to the server.
        """
        self.resume()
        self._signal(farewell or self.farewell, children=False)
        try:
            if self._process is not None:
                self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End all of its processes at once, as when the machine crashes. Harmless when it ended."""
        self.pause()
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        """Freeze the server: connections stay open, and nothing on them is answered."""
        # The main process first: then no new child slips away from the list of them.
        self._signal(signal.SIGSTOP, children=False)
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _attempt(self, deadline: float) -> str | None:
        """Start once; return None when the server answers, else its last words."""
        with self.log.open("ab") as log:
            said_before = log.tell()
            self._process = self.spawner.submit(self._spawn, log.fileno()).result()
        answered = False
        try:
            while self._process.poll() is None and time.monotonic() < deadline:
                answered = self.answers(self.port)
                if answered:
                    return None
                time.sleep(POLL_S)
        finally:
            if not answered:
                self.kill()
        said = self.log.read_bytes()[said_before:].decode(errors="replace")
        return _last_words(said) or f"exit code {self._process.returncode}"

    def _spawn(self, log: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self.command, str(self.port)],
            cwd=self.folder,
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C at the terminal is for us, who then stop it
            pass_fds=[self.lock],
        )

    def _signal(self, number: signal.Signals, *, children: bool = True) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        pids = [self.pid]
        # PostgreSQL has a child for each connection, and each is its own process group.
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
    said: str = "",
    environment: Mapping[str, str] = ENVIRONMENT,
) -> str:
    """Run a program to its end, with `said` as its input, and return all that it says.

    Raises `EmbeddedError` with its last words when it is missing, fails, or takes too long.
    """
    # A file, not a pipe: children that outlive the program would keep a pipe open.
    with tempfile.TemporaryFile("w+") as output:
        try:
            subprocess.run(
                command,
                check=True,
                timeout=timeout_s,
                env=environment,
                input=said,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
            )
        except subprocess.TimeoutExpired:
            raise EmbeddedError(f"{command[0]} takes longer than {timeout_s:.0f} s") from None
        except subprocess.CalledProcessError as failed:
            output.seek(0)
            reason = _last_words(output.read()) or f"exit code {failed.returncode}"
            raise EmbeddedError(f"{command[0]} fails: {reason}") from None
        except OSError as why:
            raise EmbeddedError(str(why)) from None
        output.seek(0)
        return output.read()


def _last_words(text: str) -> str:
    return " | ".join(text.splitlines()[-LAST_WORDS_LINES:])


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on, and that no client is given."""
    # Below the range from which the kernel serves outgoing connections: a client that keeps
    # trying a port of that range, while the server is away, ends up connected to itself.
    while True:
        port = secrets.choice(range(15_000, 32_000))
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
