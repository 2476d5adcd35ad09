"""The event ID in other processes."""

import subprocess
import sys
from pathlib import Path

from tests.unit.test_event import STORED


def test_ids_are_the_same_in_every_process() -> None:
    """Nothing of a process (hash seed, locale, time zone) gets into an ID."""
    script = (
        "from tests.unit.test_event import *; "
        "print(*[id_of(**p).hex() for p, _ in STORED.values()])"
    )
    for seed, zone in (("1", "Asia/Kathmandu"), ("2", "America/St_Johns")):
        output = subprocess.check_output(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[2],
            env={"PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": "C"},
            text=True,
        )
        assert output.split() == [stored for _, stored in STORED.values()]
