"""Many callers of one gateway: in open loop at a fixed rate, or in closed loop one after another.

Lean, so that one process can offer thousands of callbacks a second beside the gateway that it
measures: no task, future or timer for a request, and known answers are not parsed.
"""

import asyncio
import time
from array import array
from collections import defaultdict
from collections.abc import Callable
from typing import cast

from bench.faults.ledger import Told, understand
from bench.testbed.caller import Answer

TICK_S = 0.002
_KNOWN_MAX = 100


class Record:
    """The answers to what was sent in one phase, by workspace and by what was told.

    Latencies count from the moment when a request was due: one that the callers themselves sent
    late is not made to look faster.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.sent = 0
        self.duration_s = 0.0
        self.latencies: defaultdict[tuple[str, Told], array[float]] = defaultdict(_doubles)
        self.written_at = _doubles()

    def of(self, told: Told, *workspaces: str) -> list[float]:
        """Return the latencies of one answer, sorted; of all workspaces where none is named."""
        return sorted(
            latency
            for (workspace, what), latencies in self.latencies.items()
            if what is told and (not workspaces or workspace in workspaces)
            for latency in latencies
        )

    def number(self, told: Told | None = None, *workspaces: str) -> int:
        """Return how many answers of this kind there were, or of any kind."""
        return sum(
            len(latencies)
            for (workspace, what), latencies in self.latencies.items()
            if told in (None, what) and (not workspaces or workspace in workspaces)
        )

    @property
    def goodput(self) -> float:
        """Events a second that were answered `written` before the phase was over."""
        ended = self.started + self.duration_s
        return sum(at <= ended for at in self.written_at) / self.duration_s


def _doubles() -> "array[float]":
    return array("d")


class Crowd:
    """Callers with keep-alive connections, as many as there are requests under way.

    `request` returns the workspace and the bytes of request number so-and-so.
    """

    def __init__(self, port: int, request: Callable[[int], tuple[str, bytes]]) -> None:
        self.records: list[Record] = []
        self.under_way = 0
        self._port = port
        self._request = request
        self._number = 0
        self._is_closed_loop = False
        self._idle: list[_Line] = []
        self._lines: set[_Line] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._known: dict[bytes, Told] = {}

    async def offer(self, rate: float, duration_s: float) -> Record:
        """Send each request when it is due, whatever becomes of the others."""
        record = self._begin()
        total = int(rate * duration_s)
        while record.sent < total:
            due = min(total, int((time.monotonic() - record.started) * rate) + 1)
            while record.sent < due:
                self._send(record.started + record.sent / rate)
            await asyncio.sleep(TICK_S)
        record.duration_s = time.monotonic() - record.started
        return record

    async def keep_busy(self, callers: int, duration_s: float) -> Record:
        """Let as many callers send one request after another, each when it has its answer."""
        record = self._begin()
        self._is_closed_loop = True
        for _ in range(callers):
            self._send(time.monotonic())
        await asyncio.sleep(duration_s)
        self._is_closed_loop = False
        record.duration_s = time.monotonic() - record.started
        return record

    async def finish(self, timeout_s: float) -> None:
        """Wait until everything is answered; raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.under_way:  # noqa: ASYNC110 - the hot path has nobody to tell
                await asyncio.sleep(TICK_S)

    def close(self) -> None:
        """Close all connections."""
        for line in list(self._lines):
            line.close()

    def _begin(self) -> Record:
        self.records.append(Record())
        return self.records[-1]

    def _send(self, due: float) -> None:
        number, self._number = self._number, self._number + 1
        record = self.records[-1]
        record.sent += 1
        self.under_way += 1
        line = self._idle.pop() if self._idle else _Line(self)
        workspace, request = self._request(number)
        line.begin(record, workspace, due, request)

    def connect(self, line: "_Line") -> None:
        """Open a connection for a caller."""
        task = asyncio.create_task(self._connect(line))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, line: "_Line") -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: line, "127.0.0.1", self._port
            )
        except OSError:
            line.end(Told.NO_CONNECTION)
        else:
            self._lines.add(line)

    def understand(self, data: bytes) -> Told | None:
        """Return what an answer says; None while it is not complete."""
        told = self._known.get(data)
        if told is None:
            head, ends, body = data.partition(b"\r\n\r\n")
            _, has_length, rest = head.lower().partition(b"\r\ncontent-length: ")
            if not ends or not has_length or len(body) < int(rest.partition(b"\r\n")[0]):
                return None
            told = understand(Answer(int(head[9:12]), body, 0.0, 0.0, head))
            if len(self._known) < _KNOWN_MAX:
                self._known[data] = told
        return told

    def ended(self, line: "_Line", *, is_open: bool) -> None:
        """Go on after an answer, or after the end of a connection."""
        self.under_way -= 1
        if is_open:
            self._idle.append(line)
        if self._is_closed_loop:
            self._send(time.monotonic())

    def lost(self, line: "_Line") -> None:
        """Forget a connection."""
        self._lines.discard(line)
        if line in self._idle:
            self._idle.remove(line)


class _Line(asyncio.Protocol):
    """One connection, which carries one request at a time."""

    __slots__ = (
        "_crowd", "_due", "_is_busy", "_received", "_record", "_request", "_transport",
        "_workspace",
    )  # fmt: skip

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._is_busy = False

    def begin(self, record: Record, workspace: str, due: float, request: bytes) -> None:
        self._record, self._workspace, self._due = record, workspace, due
        self._is_busy = True
        if self._transport is None:
            self._request = request
            self._crowd.connect(self)
        else:
            self._transport.write(request)

    def end(self, told: Told) -> None:
        now = time.monotonic()
        self._is_busy = False
        self._record.latencies[self._workspace, told].append(now - self._due)
        if told is Told.WRITTEN:
            self._record.written_at.append(now)
        is_open = self._transport is not None and not self._transport.is_closing()
        self._crowd.ended(self, is_open=is_open)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        told = self._crowd.understand(data)
        if told is None:
            self._received = data
            return
        self._received = b""
        self.end(told)

    def connection_lost(self, _: Exception | None) -> None:
        self._crowd.lost(self)
        if self._is_busy:
            self.end(Told.CLOSED)
