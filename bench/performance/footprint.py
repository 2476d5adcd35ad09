"""The bytes of events: on disk, in the WAL, and on the network."""

import asyncpg
import msgspec

from bench.testbed.client import metrics
from bench.testbed.proxy import End, ProxiedConnection, Proxy

# A hypertable's rows are in its chunks; the rest of the query is for an ordinary table.
_SIZES = """
SELECT sum(pg_table_size(part))::bigint AS table_bytes,
       sum(pg_indexes_size(part))::bigint AS index_bytes
FROM (
    SELECT 'events'::regclass AS part
    UNION ALL
    SELECT inhrelid FROM pg_inherits WHERE inhparent = 'events'::regclass
) AS parts
"""


class Written(msgspec.Struct, frozen=True):
    """The counters of one gateway and of the WAL of its database, since their start."""

    wal_bytes: int
    events: float
    batches: float
    commit_s: float

    def since(self, before: "Written") -> "Written":
        """Return the counts after `before`."""
        return Written(
            self.wal_bytes - before.wal_bytes,
            self.events - before.events,
            self.batches - before.batches,
            self.commit_s - before.commit_s,
        )


async def written(connection: asyncpg.Connection, port: int) -> Written:
    """Read the counters of the gateway on this port."""
    wal_bytes = await connection.fetchval("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn")
    counts = await metrics(port)
    return Written(
        int(wal_bytes),
        counts["flokit_batch_events_sum"],
        counts["flokit_batch_events_count"],
        counts["flokit_commit_seconds_sum"],
    )


async def sizes(connection: asyncpg.Connection) -> tuple[int, int]:
    """Return the bytes of the events' table, TOAST included, and of its indexes."""
    row = await connection.fetchrow(_SIZES)
    assert row is not None
    return row["table_bytes"], row["index_bytes"]


class Meter(Proxy):
    """A proxy that counts the payload bytes of both directions."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.asked_bytes = 0
        self.answered_bytes = 0

    def passing(self, connection: ProxiedConnection, end: End, data: bytes) -> bytes:
        """See `Proxy`."""
        if end is connection.client:
            self.asked_bytes += len(data)
        else:
            self.answered_bytes += len(data)
        return super().passing(connection, end, data)
