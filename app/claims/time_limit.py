"""A time limit that counts only the time in which the event loop could read an answer."""

import asyncio

# A Redis that needs longer than this costs more than the database's own check.
CLAIM_TIMEOUT_S = 0.1
# Time counts in pieces. A piece that ends late had the loop held by something else, and an answer
# may lie unread in the socket: it counts as a part of one, so that the limit still ends.
PIECE_S = 0.02
LATE_S = 0.01
LATE_PIECES = 4


class TimeLimit:
    """Expires timeouts CLAIM_TIMEOUT_S after they were added.

    All of them share a timer, so that a claim does not start and cancel one of its own. The timer
    stops when a piece ends without a timeout.
    """

    def __init__(self) -> None:
        self._left_s: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._begun = self._piece_s = 0.0

    def add(self, timeout: asyncio.Timeout) -> None:
        """Count the time of a timeout from now on."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._begin_piece(loop)
        # The end of the piece counts all of it, also the part before now.
        self._left_s[timeout] = CLAIM_TIMEOUT_S + min(loop.time() - self._begun, self._piece_s)

    def remove(self, timeout: asyncio.Timeout) -> None:
        """Leave a timeout alone, also one that has expired."""
        self._left_s.pop(timeout, None)

    def _begin_piece(self, loop: asyncio.AbstractEventLoop) -> None:
        self._begun = loop.time()
        self._piece_s = min((PIECE_S, *self._left_s.values()))
        self._timer = loop.call_at(self._begun + self._piece_s, self._end_piece, loop)

    def _end_piece(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        is_late = now - self._begun - self._piece_s > LATE_S
        counted_s = PIECE_S / LATE_PIECES if is_late else self._piece_s
        for timeout, left_s in list(self._left_s.items()):
            if left_s > counted_s:
                self._left_s[timeout] = left_s - counted_s
            else:
                del self._left_s[timeout]
                timeout.reschedule(now)
        if self._left_s:
            self._begin_piece(loop)
