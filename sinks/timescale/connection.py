"""A connection that is opened when needed, lent to one user at a time, replaced when in doubt."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from math import inf
from types import TracebackType

from asyncpg.exceptions import PostgresError

from sinks.timescale import hosts
from sinks.timescale.errors import NotReplicated
from sinks.timescale.schema import read_identity
from sinks.timescale.session import Session, milliseconds, open_session, role_settings

CONNECT_TIMEOUT_S = 3.0
# The data may be replaced under an open connection, so its name is soon unknown again.
GENERATION_MAX_AGE_S = 3.0
# A clock drifts slowly: the difference stays known while a connection is replaced.
CLOCK_MAX_AGE_S = 10.0

OpenSession = Callable[[str, Mapping[str, str], float], Awaitable[Session]]


class ReconnectingConnection:
    """One connection to the primary: `async with` lends its session, and opens it where needed.

    A simulation passes an `open_session` and a wall clock, `now`, of its own. Intervals are
    measured on the clock of the running loop.
    """

    def __init__(
        self,
        database_url: str,
        *,
        commit_timeout_s: float,
        lock_timeout_s: float,
        open_session: OpenSession = open_session,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._database_url = database_url
        self._settings = {
            "application_name": "flokit-gateway",
            "lock_timeout": milliseconds(lock_timeout_s),
            # For a generic plan, the server would lock every chunk.
            "plan_cache_mode": "force_custom_plan",
            **role_settings(commit_timeout_s),
        }
        self._open_session = open_session
        self._now = now
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._session: Session | None = None
        self._generation = ""
        self._generation_at = -inf
        self._clock_offset_s = 0.0
        self._clock_at = -inf

    @property
    def generation(self) -> str | None:
        """The name of the data behind the connection; None while it is unknown."""
        if self._loop is None or self._session is None or self._session.is_closed():
            return None
        is_fresh = self._loop.time() - self._generation_at < GENERATION_MAX_AGE_S
        return self._generation if is_fresh else None

    @property
    def clock_ahead_s(self) -> float | None:
        """Our clock minus the server's, in seconds; None while it is unknown.

        A jump of our clock since the last answer of the server is part of it.
        """
        if self._loop is None or self._loop.time() - self._clock_at >= CLOCK_MAX_AGE_S:
            return None
        return self._now() - self._loop.time() - self._clock_offset_s

    async def __aenter__(self) -> Session:
        await self._lock.acquire()
        try:
            session = self._session
            if session is None or session.is_closed():
                session = await self._open()
        except BaseException:
            self._lock.release()
            raise
        session.is_wait_cancelled = False
        return session

    async def __aexit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                if self._session is not None and self._session.is_wait_cancelled:
                    raise NotReplicated("the wait for a standby was cancelled")
            elif not isinstance(error, PostgresError):
                # After a PostgresError, the server's own answer, the connection is as good as
                # before. After a time-out or a cancel it is open what the server has done and
                # will still send: the unique index decides at the retry, on another connection.
                self._give_up()
        finally:
            self._lock.release()

    async def refresh(self) -> None:
        """Read the identity of the data again, while the session is lent; gives it up on failure.

        Until the answer the last one counts, so that no claim goes without Redis meanwhile.
        """
        if self._session is None or self._loop is None:
            return
        started = self._loop.time()
        try:
            identity = await read_identity(self._session)
        except BaseException:
            self._generation_at = -inf
            self._give_up()
            raise
        self._generation = identity.generation
        # Ours is not read here: the loop's clock never jumps.
        self._clock_offset_s = identity.server_time_s - self._loop.time()
        self._generation_at = self._clock_at = started

    async def close(self) -> None:
        """Close the connection when it is free."""
        async with self._lock:
            self._give_up()
        await asyncio.gather(*self._closing)

    async def _open(self) -> Session:
        self._loop = asyncio.get_running_loop()
        # The data behind another connection is unknown.
        self._session, self._generation_at = None, -inf
        session = await self._open_session(self._database_url, self._settings, CONNECT_TIMEOUT_S)
        self._session = session
        await self.refresh()
        return session

    def _give_up(self) -> None:
        """Close the connection in the background, where asyncpg can still cancel its statement."""
        session, self._session = self._session, None
        if session is not None:
            closing = asyncio.create_task(hosts.close(session))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
