"""One connection to PostgreSQL that is never trusted longer than it deserves."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf

from asyncpg.exceptions import PostgresError

from sinks.timescale import hosts
from sinks.timescale.schema import read_identity
from sinks.timescale.session import (
    NotReplicated,
    Session,
    milliseconds,
    open_session,
    role_settings,
)

CONNECT_TIMEOUT_S = 3.0
# The data may be replaced under an open connection: what is known of it is soon forgotten.
GENERATION_MAX_AGE_S = 3.0
# A clock does not run away so soon: it is known for longer than a connection takes to replace.
CLOCK_MAX_AGE_S = 10.0


class Lane:
    """One connection for one statement at a time; opened when needed, given up when in doubt."""

    def __init__(self, database_url: str, commit_timeout_s: float, lock_timeout_s: float) -> None:
        self._database_url = database_url
        self._settings = {
            "application_name": "flokit-gateway",
            "lock_timeout": milliseconds(lock_timeout_s),
            # To weigh a plan for all times, the server would lock each chunk that there is.
            "plan_cache_mode": "force_custom_plan",
            **role_settings(commit_timeout_s),
        }
        self._lock = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()
        self._connection: Session | None = None
        self._generation = ""
        self._looked_at = -inf
        self._clock_ahead_s = 0.0
        self._clock_at = -inf

    @property
    def generation(self) -> str | None:
        """Which data the connection leads to; None while that is not known."""
        is_open = self._connection is not None and not self._connection.is_closed()
        is_fresh = time.monotonic() - self._looked_at < GENERATION_MAX_AGE_S
        return self._generation if is_open and is_fresh else None

    @property
    def clock_ahead_s(self) -> float | None:
        """How far our clock is ahead of the server's; None while that is not known."""
        is_fresh = time.monotonic() - self._clock_at < CLOCK_MAX_AGE_S
        return self._clock_ahead_s if is_fresh else None

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Session]:
        """Lend the connection, to one at a time; opens it where there is none."""
        async with self._lock:
            if self._connection is None or self._connection.is_closed():
                # Nothing is known of the data behind another connection.
                self._connection, self._looked_at = None, -inf
                self._connection = await open_session(
                    self._database_url, self._settings, CONNECT_TIMEOUT_S
                )
                await self.look()
            session = self._connection
            session.is_wait_cancelled = False
            try:
                yield session
            except PostgresError:
                raise  # the server has answered: the connection is as good as before
            except BaseException:
                # A time-out or a cancel leaves it open what the server has done and will still
                # send. The unique index decides at the retry; this connection is not used again.
                self._give_up()
                raise
            if session.is_wait_cancelled:
                raise NotReplicated("the wait for a standby was cancelled")

    async def look(self) -> None:
        """Learn which data is behind the open connection; give the connection up if that fails.

        While the answer is on its way the last one counts, so that no claim goes without Redis.
        """
        started = time.monotonic()
        if self._connection is None:
            return
        try:
            self._generation, self._clock_ahead_s = await read_identity(self._connection)
        except BaseException:
            self._looked_at = -inf
            self._give_up()
            raise
        self._looked_at = self._clock_at = started

    def _give_up(self) -> None:
        """Close the connection behind our back, so that asyncpg can still cancel its statement."""
        connection, self._connection = self._connection, None
        if connection is not None:
            closing = asyncio.create_task(hosts.close(connection))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close the connection when it is free."""
        async with self._lock:
            self._give_up()
        await asyncio.gather(*self._closing)
