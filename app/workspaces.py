"""The apps of the workspaces file by vendor and app token, reloaded when the file changes.

A reload blocks no callback, however large the file is: another process decodes it, rows are
received in chunks, and an app is a row of bytes, invisible to the garbage collector, until its
first callback.
"""

import asyncio
import logging
import sys
import threading
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from app.event import App
from app.telemetry.metrics import (
    BY_WORKSPACE,
    WORKSPACES_LOADED,
    WORKSPACES_REFUSED,
    WORKSPACES_VERSION,
)
from app.vendor import Vendors
from app.workspaces_file import (
    WorkspacesError,
    decode,
    decode_row,
    digest_of,
    key_of,
    read_bytes,
    read_digest,
    require_cell,
    rows,
)

POLL_S = 1.0
# A large file is polled less often, since each poll reads all of it.
POLL_BYTES = 16 * 1024 * 1024
# A poll that takes longer is logged: the volume hangs.
POLL_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 25.0
READER = "app.workspaces_reader"
# Limit on decoded apps; any other app is decoded at its next callback.
DECODED_MAX = 4_096
CHUNK_BYTES = 64 * 1024

log = logging.getLogger(__name__)


class _NotReadError(WorkspacesError):
    """The file could not be judged: the reload is retried."""


class _Table:
    """The apps of one file, by key, each as JSON; and its pairs of vendor and workspace.

    The garbage collector tracks neither `str` nor `bytes`.
    """

    def __init__(self) -> None:
        self.digest = b""
        self.apps: dict[str, bytes] = {}
        self.callbacks: set[tuple[str, str]] = set()
        self.is_complete = False

    def add(self, lines: list[bytes]) -> None:
        """Add lines of the reader's output; raises WorkspacesError."""
        for line in lines:
            kind, _, rest = line.partition(b"\t")
            if kind == b"app":
                key, _, row = rest.partition(b"\t")
                self.apps[key.decode()] = row
            elif kind == b"callbacks":
                vendor, _, workspace = rest.decode().partition("\t")
                self.callbacks.add((vendor, workspace))
            elif kind == b"digest":
                self.digest = bytes.fromhex(rest.decode())
            elif kind == b"end":
                self.is_complete = True
            elif kind == b"error":
                raise WorkspacesError(rest.decode())
            else:
                raise _NotReadError("unexpected output of its reader")


class Workspaces:
    """The apps of the current file; a wrong file leaves the last good one in use."""

    def __init__(self, path: Path, vendors: Vendors, cell: str = "") -> None:
        """Read the file in this process, for a gateway of a cell; raises WorkspacesError."""
        self._path = path
        self._cell = cell
        self._vendors = vendors
        self._decoded: dict[tuple[str, str], App] = {}
        table = _Table()
        text = read_bytes(path)
        apps = decode(text, vendors)
        require_cell(apps, cell)
        table.digest = digest_of(text)
        table.apps = dict(rows(apps))
        table.callbacks = {(app.vendor, app.workspace_id) for app in apps.values()}
        self._size_bytes = len(text)
        # The digest of the last file that was loaded or refused, or the error of reading it.
        self._judged: bytes | str = table.digest
        self._use(table)

    def find(self, vendor: str, app_token: str | None) -> App | None:
        """Return the app of a token; None if no workspace has it."""
        if not app_token:
            return None
        app = self._decoded.get((vendor, app_token))
        if app is None and (row := self._apps.get(key_of(vendor, app_token))) is not None:
            if len(self._decoded) >= DECODED_MAX:
                self._decoded.clear()
            app = self._decoded[vendor, app_token] = decode_row(row, self._vendors[vendor])
        return app

    def has_apps_of(self, vendor: str) -> bool:
        """Return whether an app of the vendor is in the file."""
        return any(name == vendor for name, _ in self._callbacks)

    async def watch(self) -> None:
        """Poll the file, and load each change; never returns."""
        previous = self._judged
        while True:
            await asyncio.sleep(POLL_S * (1 + self._size_bytes // POLL_BYTES))
            try:
                found = await self._poll()
                # A half-written file may be valid: it is loaded once two polls agree.
                if found == previous and found != self._judged:
                    await self._load(found)
            except Exception as error:  # noqa: BLE001 - e.g. no thread: the next poll may have one
                self._refuse(f"is not read: {error}")
                self._judged = ""  # so that the next good file is loaded and logged
            else:
                previous = found

    async def _poll(self) -> bytes | str:
        """Return the digest of the file, or the error of reading it.

        It is read in a daemon thread: a volume that hangs delays neither the callbacks nor the end
        of the process.
        """
        loop = asyncio.get_running_loop()
        found: asyncio.Future[bytes | str] = loop.create_future()

        def resolve(result: bytes | str) -> None:
            if not found.done():
                found.set_result(result)

        def read() -> None:
            try:
                result: bytes | str
                result, self._size_bytes = read_digest(self._path)
            except WorkspacesError as error:
                result = str(error)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(resolve, result)

        threading.Thread(target=read, name="workspaces", daemon=True).start()
        done, _ = await asyncio.wait([found], timeout=POLL_TIMEOUT_S)
        if not done:
            WORKSPACES_REFUSED.set(1)
            log.error("the workspaces file is not read", extra={"file": str(self._path)})
            self._judged = ""  # so that the next good file is loaded and logged
        return await found

    async def _load(self, found: bytes | str) -> None:
        """Use or refuse the file with this digest; if the reader fails, neither."""
        try:
            if isinstance(found, str):
                raise WorkspacesError(found)
            table = await self._run_reader()
            if table.digest != found:
                return  # changed since the poll
        except WorkspacesError as error:
            self._refuse(str(error))
            if isinstance(error, _NotReadError):
                return
        else:
            self._use(table)
            WORKSPACES_REFUSED.set(0)
            log.info("workspaces file reloaded", extra={"apps": len(table.apps)})
        self._judged = found

    async def _run_reader(self) -> _Table:
        """Decode the file in another process; raises WorkspacesError."""
        path, vendors = str(self._path.absolute()), sorted(self._vendors)
        command = (sys.executable, "-m", READER, path, self._cell, *vendors)
        root = Path(__file__).parent.parent
        try:
            reader = await asyncio.create_subprocess_exec(
                *command, cwd=root, stdin=DEVNULL, stdout=PIPE
            )
        except OSError as error:  # no memory, or too many processes
            raise _NotReadError(f"its reader does not start: {error.strerror}") from None
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await _receive(reader)
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
        self._callbacks = table.callbacks
        self._decoded.clear()
        BY_WORKSPACE.in_use = table.callbacks
        WORKSPACES_LOADED.set(time.time())
        # 32 bits: exact in any float, and short enough to compare by eye.
        WORKSPACES_VERSION.set(int.from_bytes(table.digest[:4]))

    def _refuse(self, reason: str) -> None:
        WORKSPACES_REFUSED.set(1)
        log.error(
            "workspaces file refused, the last good one stays in use",
            extra={"file": str(self._path), "error": reason},
        )


async def _receive(reader: Process) -> _Table:
    """Return the table that the reader writes; raises WorkspacesError."""
    table = _Table()
    assert reader.stdout is not None  # noqa: S101 - a pipe
    rest = b""
    while chunk := await reader.stdout.read(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        table.add(lines)
        await asyncio.sleep(0)
    if not table.is_complete:
        raise _NotReadError(f"its reader ended with exit code {await reader.wait()}")
    return table
