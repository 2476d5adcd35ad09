"""A time limit that discounts the time in which the event loop is blocked."""

import asyncio

# Beyond this, the unique index of the database is assumed to be cheaper.
CLAIM_TIMEOUT_S = 0.1
# Time is counted in ticks. After a late tick, the loop was blocked and a reply may be unread: it
# counts as one of LATE_TICKS parts, and not as nothing, so that the limit is still reached.
TICK_S = 0.02
LATE_S = 0.01
LATE_TICKS = 4


class TimeLimit:
    """Expires each timeout after CLAIM_TIMEOUT_S in which the event loop was responsive.

    All timeouts share a timer, so that a claim does not start and cancel one of its own. The timer
    stops at a tick without a timeout.
    """

    def __init__(self) -> None:
        self._remaining_s: dict[asyncio.Timeout, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._tick_started_at = self._tick_s = 0.0

    def add(self, timeout: asyncio.Timeout) -> None:
        """Start counting a timeout."""
        loop = asyncio.get_running_loop()
        if self._timer is None:
            self._start_tick(loop)
        # The tick counts all of its time, also the part before now.
        self._remaining_s[timeout] = CLAIM_TIMEOUT_S + min(
            loop.time() - self._tick_started_at, self._tick_s
        )

    def remove(self, timeout: asyncio.Timeout) -> None:
        """Stop counting a timeout; no effect if it has expired."""
        self._remaining_s.pop(timeout, None)

    def _start_tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._tick_started_at = loop.time()
        self._tick_s = min((TICK_S, *self._remaining_s.values()))
        self._timer = loop.call_at(self._tick_started_at + self._tick_s, self._end_tick, loop)

    def _end_tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        is_late = now - self._tick_started_at - self._tick_s > LATE_S
        counted_s = TICK_S / LATE_TICKS if is_late else self._tick_s
        for timeout, left_s in list(self._remaining_s.items()):
            if left_s > counted_s:
                self._remaining_s[timeout] = left_s - counted_s
            else:
                del self._remaining_s[timeout]
                timeout.reschedule(now)
        if self._remaining_s:
            self._start_tick(loop)
