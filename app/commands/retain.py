"""`retain`: delete events older than RETENTION_D."""

import argparse
import asyncio

from app.settings import Settings, read_settings
from sinks.timescale import hosts
from sinks.timescale.retention import retain

CONNECT_TIMEOUT_S = 10.0


def run(_: argparse.Namespace) -> int:
    """Delete expired events and stable IDs; prints progress."""
    settings = read_settings(required=["DATABASE_URL"])
    asyncio.run(_retain(settings))
    return 0


async def _retain(settings: Settings) -> None:
    async with hosts.connected(settings.database_url, timeout_s=CONNECT_TIMEOUT_S) as connection:
        if not settings.retention_d:
            print("RETENTION_D is 0: events are kept for ever")
            return
        async for line in retain(connection, settings.retention_d):
            print(line, flush=True)
