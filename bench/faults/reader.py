"""A reader of `events` by `received_at`, as docs/loading.md describes it: it must miss no row."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import asyncpg

INTERVAL_S = 2.0
# As documented for clocks that agree.
LOOK_BACK = timedelta(seconds=90)
# After a failure: the database may be down.
AGAIN_S = 0.2
# Of a turn that waits for a lock or a frozen server, and holds a fault up meanwhile.
TIMEOUT_S = 15.0
CREATE = """
CREATE TABLE rows_read (event_id uuid PRIMARY KEY, received_at timestamptz NOT NULL);
CREATE INDEX ON rows_read (received_at)
"""
_READ = """
WITH before AS MATERIALIZED (
    SELECT coalesce(max(received_at), '-infinity') AS newest FROM rows_read
), new AS (
    INSERT INTO rows_read
    SELECT event_id, received_at FROM events
    WHERE received_at > (SELECT newest FROM before) - $1::interval
    ON CONFLICT (event_id) DO NOTHING
    RETURNING received_at
)
SELECT count(*) FILTER (WHERE received_at <= newest) AS late,
       extract(epoch FROM newest - min(received_at) FILTER (WHERE received_at <= newest))::float8
           AS behind_s
FROM new, before GROUP BY newest
"""
Connected = Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]
_ROWS = "SELECT count(*) FROM rows_read"
_MISSED = """
SELECT count(*) FROM events
WHERE NOT EXISTS (SELECT FROM rows_read WHERE rows_read.event_id = events.event_id)
"""


@dataclass
class Reading:
    """The result of a reader: the rows that it read, and those that it missed for good.

    `late` rows appeared behind the newest one, where a reader without a look-back misses them:
    `behind_s` at most.
    """

    rows: int = 0
    late: int = 0
    behind_s: float = 0.0
    missed: int = 0


class Reader:
    """Copies the IDs of new rows to a table of its own, through every failure of the database."""

    def __init__(self, connected: Connected, look_back: timedelta) -> None:
        self.reading = Reading()
        self._connected = connected
        self._look_back = look_back

    async def follow(self) -> None:
        """Read again and again, over a new connection after a failure; never returns."""
        while True:
            # A turn is one statement: after a failure the next turn reads its rows.
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                async with self._connected() as connection:
                    while True:
                        await self.read(connection)
                        await asyncio.sleep(INTERVAL_S)
            await asyncio.sleep(AGAIN_S)

    async def read(self, connection: asyncpg.Connection) -> None:
        """Read the rows that arrived later than the look-back before the newest one."""
        turn = await connection.fetchrow(_READ, self._look_back, timeout=TIMEOUT_S)
        if turn is None:
            return
        self.reading.late += turn["late"]
        self.reading.behind_s = max(self.reading.behind_s, turn["behind_s"] or 0)

    async def finish(self) -> Reading:
        """Read a last time, and return the result with the rows that were never read."""
        async with self._connected() as connection:
            await self.read(connection)
            self.reading.rows = await connection.fetchval(_ROWS)
            self.reading.missed = await connection.fetchval(_MISSED)
        return self.reading


@asynccontextmanager
async def following(
    connected: Connected, look_back: timedelta = LOOK_BACK
) -> AsyncIterator[Reader]:
    """Follow `events` meanwhile. The caller finishes the reader after the last write.

    `connected` lends connections to the database, which may be another server each time.
    """
    async with connected() as connection:
        await connection.execute(CREATE)
    reader = Reader(connected, look_back)
    task = asyncio.create_task(reader.follow())
    try:
        yield reader
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
