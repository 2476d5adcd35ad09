"""`retain`: delete events older than RETENTION_D, and drops older than QUARANTINE_D."""

import argparse
import asyncio

from app.settings import Settings, read_settings
from sinks.timescale import hosts
from sinks.timescale.retention import retain, retain_quarantine

CONNECT_TIMEOUT_S = 10.0


def run(_: argparse.Namespace) -> int:
    """Delete expired events, stable IDs, drops and rejected requests; prints progress."""
    settings = read_settings(required=["DATABASE_URL"])
    asyncio.run(_retain(settings))
    return 0


async def _retain(settings: Settings) -> None:
    async with hosts.connected(settings.database_url, timeout_s=CONNECT_TIMEOUT_S) as connection:
        if settings.retention_d:
            async for line in retain(connection, settings.retention_d):
                print(line, flush=True)
        else:
            print("RETENTION_D is 0: events are kept for ever")
        # Turned off, quarantine keeps nothing new, and its drops expire as by default: a quarantine
        # that is turned off because it is broken is not emptied overnight.
        quarantine_d = settings.quarantine_d or Settings().quarantine_d
        async for line in retain_quarantine(connection, quarantine_d):
            print(line, flush=True)
