"""Unit tests start no process."""

from collections.abc import Iterator
from typing import NoReturn

import pytest

STARTS = (
    "subprocess.Popen.__init__",
    "asyncio.create_subprocess_exec",
    "asyncio.create_subprocess_shell",
    "multiprocessing.process.BaseProcess.start",
    "os.fork",
    "os.forkpty",
    "os.posix_spawn",
    "os.system",
)


@pytest.fixture(scope="module", autouse=True)
def no_process() -> Iterator[None]:
    """Fail a test that starts a process."""

    def start(*_: object, **__: object) -> NoReturn:
        pytest.fail("a unit test starts no process: this one belongs to tests/services")

    with pytest.MonkeyPatch.context() as patch:
        for name in STARTS:
            patch.setattr(name, start)
        yield
