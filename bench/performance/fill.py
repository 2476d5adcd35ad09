"""Rows by the million, made by the server itself in a minute or two."""

from datetime import UTC, datetime, timedelta

import asyncpg

from bench.testbed.callbacks import APPS

# Else a checkpoint for every gigabyte; what the last one leaves over is written before we return.
_MORE_WAL = ("ALTER SYSTEM SET max_wal_size = '8GB'", "SELECT pg_reload_conf()")
_USUAL_WAL = ("ALTER SYSTEM RESET max_wal_size", "SELECT pg_reload_conf()")
_INDEXES = """
SELECT indexname, indexdef FROM pg_indexes
WHERE tablename = 'events' AND schemaname = current_schema()
"""
_ROWS = """
INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token,
    event_type, user_id, adid, os_name, country, properties)
SELECT gen_random_uuid(), $1::timestamptz + number * ($2::timestamptz - $1::timestamptz) / $3,
    now(), 'ws_shop', 'adjust', $4, 'purchase', 'filler' || number, md5(number::text), 'android',
    'DE', '{"revenue": "4999", "revenue_float": "49.99", "currency": "EUR",
    "event_token": "g3mz3t", "activity_kind": "event", "environment": "production",
    "tracker_name": "Network1::Campaign 9::Größe & Farbe"}'
FROM generate_series(1, $3::bigint) AS number
"""


async def fill(connection: asyncpg.Connection, rows: int, days: int = 1) -> None:
    """Add so many events, evenly spread over the last days up to now: one chunk for each day.

    The indexes are made anew afterwards, which takes a fraction of the time of keeping them up to
    date. The table ends up as an old one that is looked after: vacuumed, and on disk.
    """
    now = datetime.now(UTC)
    first = now.replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=days - 1)
    for statement in _MORE_WAL:
        await connection.execute(statement)
    indexes = await connection.fetch(_INDEXES)
    for index in indexes:
        await connection.execute(f"DROP INDEX {index['indexname']}")
    await connection.execute("SET maintenance_work_mem = '1GB'")
    await connection.execute(_ROWS, first, now, rows, next(iter(APPS)))
    for index in indexes:
        await connection.execute(index["indexdef"])
    await connection.execute("RESET maintenance_work_mem")
    await connection.execute("VACUUM (ANALYZE) events")
    for statement in _USUAL_WAL:
        await connection.execute(statement)
    await connection.execute("CHECKPOINT")
