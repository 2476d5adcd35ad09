"""What events leave behind, and what goes over the wires for them: bytes, as they were counted."""

from typing import Any

import asyncpg
import msgspec

from bench.testbed.caller import Caller
from bench.testbed.gateway import BenchError
from bench.testbed.proxy import Proxy, Wire

_REQUEST = b"GET /metrics HTTP/1.1\r\nHost: bench\r\n\r\n"
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
    """What one gateway and the log of its database have counted, since they were started."""

    wal_bytes: int
    events: float
    batches: float
    commit_s: float

    def since(self, before: "Written") -> "Written":
        """Return what was counted after `before`."""
        return Written(
            self.wal_bytes - before.wal_bytes,
            self.events - before.events,
            self.batches - before.batches,
            self.commit_s - before.commit_s,
        )


async def written(connection: asyncpg.Connection, port: int) -> Written:
    """Read the counters, of the gateway that listens on this port; raises BenchError."""
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


async def metrics(port: int) -> dict[str, float]:
    """Return what a gateway tells of itself, by series; raises BenchError."""
    caller = Caller(port)
    try:
        answer = await caller.send(_REQUEST, timeout_s=10)
    finally:
        caller.close()
    if answer.status != 200:  # noqa: PLR2004
        raise BenchError("a gateway does not tell its metrics")
    lines = (line.rpartition(" ") for line in answer.body.decode().splitlines())
    return {series: float(value) for series, _, value in lines if not series.startswith("#")}


class Meter(Proxy):
    """A wire that counts the bytes of both directions: payload, without heads of TCP and IP."""

    def __init__(self, target_port: int) -> None:
        super().__init__(target_port)
        self.asked_bytes = 0
        self.answered_bytes = 0

    def spring(self, wire: Wire, end: Any, data: bytes) -> bytes:
        """See `Proxy`."""
        if end is wire.client:
            self.asked_bytes += len(data)
        else:
            self.answered_bytes += len(data)
        return super().spring(wire, end, data)
