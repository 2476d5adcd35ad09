"""An interrupt during the start of a bench: its servers end, and its folder is gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bench.testbed.process import PATIENCE_S, POLL_S, ROOT

FAULTS = ["faults", "--kinds", "standby_killed", "--callbacks", "100", "--faults", "1"]


@pytest.mark.services
def test_interrupt_while_a_pair_starts_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C during the making of a primary ends with one line and exit code 130."""
    with subprocess.Popen(
        [sys.executable, "-m", "bench", *FAULTS],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        deadline = time.monotonic() + PATIENCE_S
        while not any(tmp_path.glob("flokit-bench-*/pair/one/PG_VERSION")):
            assert time.monotonic() < deadline
            time.sleep(POLL_S)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, errors
    assert errors.splitlines()[-1].endswith("everything is stopped, without a report")
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
