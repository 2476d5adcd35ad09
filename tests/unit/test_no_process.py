"""Unit tests start no process: each way to start one fails the test."""

import asyncio
import multiprocessing
import subprocess
import sys
from collections.abc import Callable

import pytest

WAYS: dict[str, Callable[[], object]] = {
    "run": lambda: subprocess.run([sys.executable, "-V"], check=True),
    "asyncio": lambda: asyncio.run(asyncio.create_subprocess_exec(sys.executable, "-V")),
    "multiprocessing": lambda: multiprocessing.get_context("spawn").Process(target=print).start(),
}


@pytest.mark.parametrize("way", WAYS)
def test_unit_test_that_starts_a_process_fails(way: str) -> None:
    """The fixture of `conftest.py` fails it before the process is there."""
    with pytest.raises(pytest.fail.Exception, match="starts no process"):
        WAYS[way]()
