"""(vendor, app token) -> workspace and mapping: watch the file, and take its changes over.

However large the file is, nobody waits: another process decodes it, an app is a row of bytes, which
costs the garbage collector nothing, until it is used, and rows are taken over some at a time.
"""

import asyncio
import logging
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from app.event import App
from app.telemetry.metrics import (
    BY_WORKSPACE,
    WORKSPACES_LOADED,
    WORKSPACES_REFUSED,
    WORKSPACES_VERSION,
)
from app.workspaces_file import (
    WorkspacesError,
    decode,
    digest_of,
    key_of,
    look,
    read_bytes,
    rows,
)

POLL_S = 1.0
# A large file is looked at less often: each look reads all of it.
POLL_BYTES = 16 * 1024 * 1024
# A file that takes longer is on a volume that hangs.
LOOK_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 25.0
READER = "app.workspaces_file"
# The apps that are at hand; to decode another one takes some microseconds.
DECODED_MAX = 4_096
CHUNK_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class _NotReadError(WorkspacesError):
    """Nothing is known of the file yet: it is tried again."""


_decode_app = msgspec.json.Decoder(App).decode


class _Table:
    """The apps of one file, by name, each as JSON; and its pairs of vendor and workspace.

    Neither texts nor bytes are tracked by the garbage collector.
    """

    def __init__(self) -> None:
        self.digest = b""
        self.apps: dict[str, bytes] = {}
        self.callbacks: set[tuple[str, ...]] = set()
        self.is_complete = False

    def take(self, lines: list[bytes]) -> None:
        """Take some lines of the reader; raises WorkspacesError."""
        for line in lines:
            kind, _, rest = line.partition(b"\t")
            if kind == b"app":
                name, _, row = rest.partition(b"\t")
                self.apps[name.decode()] = row
            elif kind == b"callbacks":
                self.callbacks.add(tuple(rest.decode().split("\t")))
            elif kind == b"digest":
                self.digest = bytes.fromhex(rest.decode())
            elif kind == b"end":
                self.is_complete = True
            elif kind == b"error":
                raise WorkspacesError(rest.decode())
            else:
                raise _NotReadError("its reader says something else")


class Workspaces:
    """The apps of the file as it is now; a wrong file leaves the last good one in use."""

    def __init__(self, path: Path, vendors: Collection[str]) -> None:
        """Read the file, here and now; raises WorkspacesError."""
        self._path = path
        self._vendors = sorted(vendors)
        self._decoded: dict[tuple[str, str], App] = {}
        table = _Table()
        text = read_bytes(path)
        apps = decode(text, vendors)
        table.digest = digest_of(text)
        table.apps = dict(rows(apps))
        table.callbacks = {(app.vendor, app.workspace_id) for app in apps.values()}
        self._size_bytes = len(text)
        self._judged: bytes | str = table.digest
        self._use(table)

    def find(self, vendor: str, app_token: str | None) -> App | None:
        """Return the app of a token; None where no workspace has it."""
        if not app_token:
            return None
        app = self._decoded.get((vendor, app_token))
        if app is None and (row := self._apps.get(key_of(vendor, app_token))) is not None:
            if len(self._decoded) >= DECODED_MAX:
                self._decoded.clear()
            app = self._decoded[vendor, app_token] = _decode_app(row)
        return app

    async def watch(self) -> None:
        """Look at the file again and again, and use what it says; never returns."""
        seen = self._judged
        while True:
            await asyncio.sleep(POLL_S * (1 + self._size_bytes // POLL_BYTES))
            try:
                now = await self._look()
                # A file that is being written may be good, and not whole: it counts when it has
                # stayed the same from one look to the next.
                if now == seen and now != self._judged:
                    await self._judge(now)
            except Exception as error:  # noqa: BLE001 - no thread to be had: else it ends for good
                self._refuse(f"is not read: {error}")
                self._judged = ""  # so that it is said when that is over
            else:
                seen = now

    async def _look(self) -> bytes | str:
        """Return a digest of what the file holds, or why it cannot be read.

        The file may be on a slow volume: the callbacks do not wait for it. Nor does the end of the
        process wait for a thread that hangs.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[bytes | str] = loop.create_future()

        def tell(found_out: bytes | str) -> None:
            if not found.done():
                found.set_result(found_out)

        def read() -> None:
            try:
                found_out: bytes | str
                found_out, self._size_bytes = look(self._path)
            except WorkspacesError as error:
                found_out = str(error)
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(tell, found_out)

        threading.Thread(target=read, name="workspaces", daemon=True).start()
        done, _ = await asyncio.wait([found], timeout=LOOK_TIMEOUT_S)
        if not done:
            WORKSPACES_REFUSED.set(1)
            log.error("the workspaces file is not read", extra={"file": str(self._path)})
            self._judged = ""  # so that it is said when that is over
        return await found

    async def _judge(self, now: bytes | str) -> None:
        try:
            if isinstance(now, str):
                raise WorkspacesError(now)
            table = await self._read()
            if table.digest != now:
                return  # it has changed since
        except WorkspacesError as error:
            self._refuse(str(error))
            if isinstance(error, _NotReadError):
                return
        else:
            self._use(table)
            WORKSPACES_REFUSED.set(0)
            log.info("workspaces file read again", extra={"apps": len(table.apps)})
        self._judged = now

    async def _read(self) -> _Table:
        """Return what the file says, from another process; raises WorkspacesError."""
        command = (sys.executable, "-m", READER, str(self._path.absolute()), *self._vendors)
        root = Path(__file__).parent.parent
        try:
            reader = await asyncio.create_subprocess_exec(
                *command, cwd=root, stdin=DEVNULL, stdout=PIPE
            )
        except OSError as error:  # no memory, or too many processes
            raise _NotReadError(f"its reader does not start: {error.strerror}") from None
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await _take_over(reader)
        except TimeoutError:
            raise _NotReadError(f"is not read within {READ_TIMEOUT_S:.0f} s") from None
        finally:
            with suppress(ProcessLookupError):
                reader.kill()
            with suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await reader.wait()

    def _use(self, table: _Table) -> None:
        self._apps: Mapping[str, bytes] = table.apps
        self._decoded.clear()
        BY_WORKSPACE.in_use = table.callbacks
        WORKSPACES_LOADED.set(time.time())
        # 32 bits: any float holds them, and people can compare them.
        WORKSPACES_VERSION.set(int.from_bytes(table.digest[:4]))

    def _refuse(self, why: str) -> None:
        WORKSPACES_REFUSED.set(1)
        log.error(
            "workspaces file refused, the last good one stays in use",
            extra={"file": str(self._path), "error": why},
        )


async def _take_over(reader: Process) -> _Table:
    """Return what the reader says; raises WorkspacesError."""
    table = _Table()
    assert reader.stdout is not None  # noqa: S101 - a pipe
    rest = b""
    while chunk := await reader.stdout.read(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        table.take(lines)
        await asyncio.sleep(0)
    if not table.is_complete:
        raise _NotReadError(f"its reader ended with exit code {await reader.wait()}")
    return table
