"""Quarantine in PostgreSQL: drops with their size by account, and traces of rejected requests."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from secrets import token_hex
from typing import TypeVar

import msgspec

from app.dropped import Dropped, RejectedRequest
from sinks import Account
from sinks.timescale.connection import OpenSession, ReconnectingConnection
from sinks.timescale.schema import keep_chunk_ahead
from sinks.timescale.session import Session, open_session, unit

REJECTED_MAX = 10_000
# The interval at which the chunk of the coming day is made, and its wait for a lock.
CHUNKS_S = 60.0
CHUNKS_LOCK_TIMEOUT_S = 0.5

# One statement is one transaction, with or without a pooler. A retry after a deadlock is the
# vendor's: all writers and `retain` lock the rows of the sizes in the order of their key.
_KEEP = """
WITH kept AS (
    INSERT INTO dropped (received_at, vendor, workspace_id, app_token, reason, subject, method,
        query, content_type, body, event)
    SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[],
        $6::text[], $7::text[], $8::bytea[], $9::text[], $10::bytea[], $11::bytea[])
)
INSERT INTO quarantine_usage AS usage (writer, day, workspace_id, reason, subject, rows, bytes)
SELECT $12::text, *
FROM unnest($13::date[], $14::text[], $15::text[], $16::text[], $17::int8[], $18::int8[])
    AS added (day, workspace_id, reason, subject, rows, bytes)
ORDER BY day, workspace_id, reason, subject
ON CONFLICT (writer, day, workspace_id, reason, subject)
DO UPDATE SET rows = usage.rows + excluded.rows, bytes = usage.bytes + excluded.bytes
"""
# Another writer may delete the same rows at this moment.
_REJECT = f"""
WITH entered AS (
    INSERT INTO rejected (received_at, vendor, reason, address, hint)
    SELECT * FROM unnest($1::timestamptz[], $2::text[], $3::text[], $4::text[], $5::text[])
    RETURNING rejected_id
)
DELETE FROM rejected WHERE rejected_id IN (
    SELECT rejected_id FROM rejected
    WHERE rejected_id <= (SELECT max(rejected_id) FROM entered) - {REJECTED_MAX}
    ORDER BY rejected_id FOR UPDATE SKIP LOCKED
)
"""  # noqa: S608 - made of constants
_USAGE = """
SELECT workspace_id,
    CASE WHEN is_small THEN '' ELSE reason END, CASE WHEN is_small THEN '' ELSE subject END,
    sum(bytes)::int8
FROM (
    SELECT workspace_id, reason, subject, sum(bytes) AS bytes,
        sum(bytes) < $1::int8 AS is_small
    FROM quarantine_usage GROUP BY workspace_id, reason, subject
) AS accounts
GROUP BY 1, 2, 3
"""

Result = TypeVar("Result")

log = logging.getLogger(__name__)


class TimescaleQuarantine:
    """Keeps drops over one connection; none of them waits for an event, nor an event for them.

    `writer` names the rows of sizes that only this object writes. `open_session` and `now`, the
    wall clock, are for a simulation.
    """

    def __init__(
        self,
        database_url: str,
        *,
        commit_timeout_s: float,
        writer: str | None = None,
        open_session: OpenSession = open_session,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._commit_timeout_s = commit_timeout_s
        self._writer = token_hex(8) if writer is None else writer
        self._now = now
        self._connection = ReconnectingConnection(
            database_url,
            commit_timeout_s=commit_timeout_s,
            lock_timeout_s=commit_timeout_s,
            open_session=open_session,
            now=now,
        )
        self._background: asyncio.Task[None] | None = None

    async def keep(self, drops: Sequence[Dropped]) -> None:
        """See `Quarantine`. Raises TimeoutError after the commit time-out."""
        if not drops:
            return
        rows, sizes = columns(map(_row, drops)), columns(sizes_of(drops))
        await self._run(lambda session: session.execute(_KEEP, *rows, self._writer, *sizes))

    async def reject(self, requests: Sequence[RejectedRequest]) -> None:
        """See `Quarantine`. Raises TimeoutError after the commit time-out."""
        if not requests:
            return
        rows = columns(map(msgspec.structs.astuple, requests))
        await self._run(lambda session: session.execute(_REJECT, *rows))

    async def usage(self, small_bytes: int) -> Mapping[Account, int]:
        """See `Quarantine`. Raises TimeoutError after the commit time-out."""
        records = await self._run(lambda session: session.fetch(_USAGE, small_bytes))
        return {Account(*record[:3]): record[3] for record in records}

    async def close(self) -> None:
        """See `Quarantine`."""
        if self._background is not None:
            self._background.cancel()
        await self._connection.close()

    async def _run(self, statement: Callable[[Session], Awaitable[Result]]) -> Result:
        async with asyncio.timeout(self._commit_timeout_s), self._connection as session:
            if self._background is None:
                self._background = asyncio.create_task(self._keep_chunk_ahead())
            async with unit(session, is_whole=False):
                return await statement(session)

    async def _keep_chunk_ahead(self) -> None:
        while True:
            now = datetime.fromtimestamp(self._now(), UTC)
            try:
                async with asyncio.timeout(self._commit_timeout_s), self._connection as session:
                    await keep_chunk_ahead(session, "dropped", now, CHUNKS_LOCK_TIMEOUT_S)
            except Exception as error:  # noqa: BLE001 - the first drop of a day makes it
                log.warning(
                    "chunk of quarantine not made ahead of time",
                    extra={"error": type(error).__name__},
                )
            await asyncio.sleep(CHUNKS_S)


def _row(drop: Dropped) -> tuple[object, ...]:
    return (
        drop.received_at, drop.vendor, drop.workspace_id, drop.app_token, drop.reason.value,
        drop.subject, drop.method, drop.query, drop.content_type, drop.body, drop.event,
    )  # fmt: skip


def sizes_of(drops: Sequence[Dropped]) -> Iterator[tuple[object, ...]]:
    """Return the number and the size of the drops by day and account."""
    sizes: defaultdict[tuple[date, Account], list[int]] = defaultdict(list)
    for drop in drops:
        account = Account(drop.workspace_id, drop.reason.value, drop.account)
        sizes[drop.received_at.astimezone(UTC).date(), account].append(drop.size_bytes)
    for (day, account), sizes_bytes in sizes.items():
        yield (day, *account, len(sizes_bytes), sum(sizes_bytes))


def columns(rows: Iterable[tuple[object, ...]]) -> list[list[object]]:
    """Return rows as one array for each column, for `unnest`."""
    return [list(column) for column in zip(*rows, strict=True)]
