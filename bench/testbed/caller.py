"""One keep-alive connection of a vendor: requests as bytes, answers with their times."""

import asyncio
import re
import time
from typing import NamedTuple, cast

_HEAD_ENDS = b"\r\n\r\n"
_STATUS = re.compile(rb"HTTP/1\.[01] ([0-9]{3}) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)


class Answer(NamedTuple):
    """What came back, and when (seconds since the epoch).

    Status 0 is no answer: `body` then says why (`refused`, `closed`, `timed out`, `not HTTP`).
    """

    status: int
    body: bytes
    sent_at: float
    answered_at: float
    head: bytes = b""


class Caller(asyncio.Protocol):
    """Sends one request at a time on one connection, which it opens for the first of them."""

    def __init__(self, port: int) -> None:
        self.is_closed = False
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._answer: asyncio.Future[Answer] | None = None
        self._sent_at = 0.0

    async def send(self, request: bytes, timeout_s: float) -> Answer:
        """Return the answer to a request, after `timeout_s` none."""
        loop = asyncio.get_running_loop()
        self._sent_at = time.time()
        if self._transport is None and not await self._connect(timeout_s):
            return self._unanswered(b"refused")
        assert self._transport is not None
        self._answer = loop.create_future()
        timer = loop.call_later(timeout_s, self._end, b"timed out")
        self._transport.write(request)
        try:
            return await self._answer
        finally:
            timer.cancel()
            self._answer = None

    async def hang_up(self, request: bytes, after_s: float) -> None:
        """Send a request, or a part of one, and go away without waiting for its answer."""
        if self._transport is not None or await self._connect(after_s + 1):
            assert self._transport is not None
            self._transport.write(request)
            await asyncio.sleep(after_s)
            self.close()

    def close(self) -> None:
        """Close the connection at once; nothing more can be sent."""
        self.is_closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _connect(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.get_running_loop().create_connection(
                    lambda: self, "127.0.0.1", self._port
                )
        except (OSError, TimeoutError):
            self.is_closed = True
            return False
        return True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin a connection; asyncio calls this."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Take the answer when it is complete; asyncio calls this."""
        self._received += data
        head, ends, body = self._received.partition(_HEAD_ENDS)
        if not ends:
            return
        status, length = _STATUS.match(head), _LENGTH.search(head)
        size = int(length[1]) if length is not None else 0
        if len(body) < size:
            return
        self._received = b""
        if status is None or len(body) > size or self._answer is None or self._answer.done():
            self._end(b"not HTTP")
            return
        if _CLOSES.search(head):
            self.close()
        answer = Answer(int(status[1]), body, self._sent_at, time.time(), head)
        self._answer.set_result(answer)

    def connection_lost(self, _: Exception | None) -> None:
        """Tell who waits that no answer comes; asyncio calls this."""
        self._end(b"closed")

    def _end(self, why: bytes) -> None:
        self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._unanswered(why))

    def _unanswered(self, why: bytes) -> Answer:
        return Answer(0, why, self._sent_at, time.time())
