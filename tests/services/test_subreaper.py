"""A program that leaves its children behind: none of them outlives the bench."""

import os
import subprocess
import sys
import time
from pathlib import Path

from bench.testbed.process import PATIENCE_S, POLL_S, ROOT, Program
from bench.topologies import subreaper

# Like Patroni: a daemon in a session of its own, whose parent ends at once.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        open(sys.argv[1], "w").write(str(os.getpid()))
        os.rename(sys.argv[1], sys.argv[1] + ".pid")
        time.sleep(3600)
    os._exit(0)
os.wait()
"""


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # ended before the open, or the read
        return False


def started(folder: Path, read_end: int) -> tuple[Program, int]:
    """A subreaper, and the process ID of the daemon that its command has left."""
    command = [sys.executable, subreaper.__file__, str(read_end)]
    command += [sys.executable, "-c", DAEMON, str(folder / "daemon")]
    program = Program(command, folder / "log", pass_fds=[read_end])
    program.start()
    written = folder / "daemon.pid"
    program.wait_until(written.exists)
    return program, int(written.read_text())


def test_orphans_end_when_the_pipe_is_closed(tmp_path: Path) -> None:
    """A node is killed with all of its processes, and nothing else ends it."""
    read_end, write_end = os.pipe()
    program, daemon = started(tmp_path, read_end)
    os.close(read_end)
    assert is_alive(daemon)
    assert program.exit_code is None
    os.close(write_end)
    program.wait()
    assert not is_alive(daemon)


OWNER = """
import os, sys, time
from pathlib import Path
from tests.services.test_subreaper import started
read_end, write_end = os.pipe()
started(Path(sys.argv[1]), read_end)
print("started", flush=True)
time.sleep(3600)
"""


def test_orphans_end_with_the_bench(tmp_path: Path) -> None:
    """A bench that is killed leaves no process behind."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "started\n"
    daemon = int((tmp_path / "daemon.pid").read_text())
    owner.kill()
    owner.wait(PATIENCE_S)
    owner.stdout.close()
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(daemon):
        assert time.monotonic() < deadline
        time.sleep(POLL_S)
