"""Load on one gateway: callers in an open loop at a fixed rate, or in a closed loop.

Lean, so that one process can offer thousands of callbacks a second beside the measured gateway: no
task, future or timer for a request, and known answers are not parsed.
"""

import asyncio
import time
from array import array
from collections import defaultdict
from collections.abc import Callable
from typing import cast

from bench.testbed.client import parse_head
from bench.testbed.ledger import AnswerKind, classify

TICK_S = 0.002
_KNOWN_MAX = 100


class Record:
    """The answers of one phase, by workspace and kind.

    Latencies count from the moment when a request was due, which avoids coordinated omission.
    """

    def __init__(self) -> None:
        self.started = time.monotonic()
        self.sent = 0
        self.duration_s = 0.0
        self.latencies: defaultdict[tuple[str, AnswerKind], array[float]] = defaultdict(_doubles)
        self.written_at = _doubles()

    def of(self, kind: AnswerKind, *workspaces: str) -> list[float]:
        """Return the sorted latencies of one kind of answer; of all workspaces if none is named."""
        return sorted(
            latency
            for (workspace, found), latencies in self.latencies.items()
            if found is kind and (not workspaces or workspace in workspaces)
            for latency in latencies
        )

    def number(self, kind: AnswerKind | None = None, *workspaces: str) -> int:
        """Return the number of answers of this kind, or of any kind."""
        return sum(
            len(latencies)
            for (workspace, found), latencies in self.latencies.items()
            if kind in (None, found) and (not workspaces or workspace in workspaces)
        )

    def all_latencies(self) -> list[float]:
        """Return the sorted latencies of all answers."""
        return sorted(latency for each in self.latencies.values() for latency in each)

    @property
    def goodput(self) -> float:
        """Events a second that were answered `written` before the end of the phase."""
        ended = self.started + self.duration_s
        return sum(at <= ended for at in self.written_at) / self.duration_s


def _doubles() -> "array[float]":
    return array("d")


class Callers:
    """Callers with keep-alive connections, one for each request in flight.

    `request` returns the workspace and the bytes of the request of a number.
    """

    def __init__(self, port: int, request: Callable[[int], tuple[str, bytes]]) -> None:
        self.records: list[Record] = []
        self.in_flight = 0
        self._port = port
        self._request = request
        self._number = 0
        self._is_closed_loop = False
        self._idle: list[_Caller] = []
        self._open: set[_Caller] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._known: dict[bytes, AnswerKind] = {}

    async def offer(self, rate: float, duration_s: float) -> Record:
        """Send each request when it is due, independent of the answers to others."""
        record = self._begin()
        total = int(rate * duration_s)
        while record.sent < total:
            due = min(total, int((time.monotonic() - record.started) * rate) + 1)
            while record.sent < due:
                self._send(record.started + record.sent / rate)
            await asyncio.sleep(TICK_S)
        record.duration_s = time.monotonic() - record.started
        return record

    async def flood(self, rate: float, in_flight_max: int) -> None:
        """Send at a rate, without an end; a request that finds no place in flight is left out.

        Else a stall of the machine would be followed by thousands at once.
        """
        record = self._begin()
        while True:
            due = int((time.monotonic() - record.started) * rate)
            while record.sent < due and self.in_flight < in_flight_max:
                self._send(time.monotonic())
            record.sent = due
            await asyncio.sleep(TICK_S)

    async def keep_busy(self, callers: int, duration_s: float) -> Record:
        """Keep so many requests in flight: each answer is followed by the next request."""
        record = self._begin()
        self._is_closed_loop = True
        for _ in range(callers):
            self._send(time.monotonic())
        await asyncio.sleep(duration_s)
        self._is_closed_loop = False
        record.duration_s = time.monotonic() - record.started
        return record

    async def finish(self, timeout_s: float) -> None:
        """Return when every request has its answer; raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while self.in_flight:  # noqa: ASYNC110 - an event would cost on the hot path
                await asyncio.sleep(TICK_S)

    def close(self) -> None:
        """Close all connections."""
        for caller in list(self._open):
            caller.close()

    def _begin(self) -> Record:
        self.records.append(Record())
        return self.records[-1]

    def _send(self, due: float) -> None:
        number, self._number = self._number, self._number + 1
        record = self.records[-1]
        record.sent += 1
        self.in_flight += 1
        caller = self._idle.pop() if self._idle else _Caller(self)
        workspace, request = self._request(number)
        caller.begin(record, workspace, due, request)

    def connect(self, caller: "_Caller") -> None:
        """Open a connection for a caller."""
        task = asyncio.create_task(self._connect(caller))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, caller: "_Caller") -> None:
        try:
            await asyncio.get_running_loop().create_connection(
                lambda: caller, "127.0.0.1", self._port
            )
        except OSError:
            caller.end(AnswerKind.NO_CONNECTION)
        else:
            self._open.add(caller)

    def classify(self, data: bytes) -> AnswerKind | None:
        """Return the kind of an answer; None while it is incomplete."""
        kind = self._known.get(data)
        if kind is None:
            head, ends, body = data.partition(b"\r\n\r\n")
            if not ends:
                return None
            answer = parse_head(head)
            if len(body) < int(answer.headers["content-length"]):
                return None
            kind = classify(answer._replace(body=body))
            if len(self._known) < _KNOWN_MAX:
                self._known[data] = kind
        return kind

    def ended(self, caller: "_Caller", *, is_open: bool) -> None:
        """Continue after an answer, or after the end of a connection."""
        self.in_flight -= 1
        if is_open:
            self._idle.append(caller)
        if self._is_closed_loop:
            self._send(time.monotonic())

    def lost(self, caller: "_Caller") -> None:
        """Remove a closed connection."""
        self._open.discard(caller)
        if caller in self._idle:
            self._idle.remove(caller)


class _Caller(asyncio.Protocol):
    """One connection, with one request at a time."""

    __slots__ = (
        "_callers", "_due", "_is_busy", "_received", "_record", "_request", "_transport",
        "_workspace",
    )  # fmt: skip

    def __init__(self, callers: Callers) -> None:
        self._callers = callers
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._is_busy = False

    def begin(self, record: Record, workspace: str, due: float, request: bytes) -> None:
        self._record, self._workspace, self._due = record, workspace, due
        self._is_busy = True
        if self._transport is None:
            self._request = request
            self._callers.connect(self)
        else:
            self._transport.write(request)

    def end(self, kind: AnswerKind) -> None:
        now = time.monotonic()
        self._is_busy = False
        self._record.latencies[self._workspace, kind].append(now - self._due)
        if kind is AnswerKind.WRITTEN:
            self._record.written_at.append(now)
        is_open = self._transport is not None and not self._transport.is_closing()
        self._callers.ended(self, is_open=is_open)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._received:
            data = self._received + data
        kind = self._callers.classify(data)
        if kind is None:
            self._received = data
            return
        self._received = b""
        self.end(kind)

    def connection_lost(self, _: Exception | None) -> None:
        self._callers.lost(self)
        if self._is_busy:
            self.end(AnswerKind.CLOSED)
