"""`migrate`: bring the schema up to date."""

import argparse
import asyncio
from collections.abc import Sequence

from app.settings import read_settings
from sinks.timescale import hosts, schema

CONNECT_TIMEOUT_S = 10.0


def run(_: argparse.Namespace) -> int:
    """Apply the missing migrations; safe to run from several places at once."""
    settings = read_settings(required=["DATABASE_URL"])
    for name in asyncio.run(migrate(settings.database_url)):
        print(f"applied {name}")
    print("the schema is up to date")
    return 0


async def migrate(database_url: str) -> Sequence[str]:
    """Apply the missing migrations to a database, and return their names."""
    async with hosts.connected(database_url, timeout_s=CONNECT_TIMEOUT_S) as connection:
        return await schema.migrate(connection)
