"""Statements and locks in the database of a test or a run."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Lend a connection of one's own."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(url: str, *statements: str) -> None:
    """Run statements, each in a transaction of its own."""
    async with connected(url) as connection:
        for statement in statements:
            await connection.execute(statement)


@asynccontextmanager
async def locked(url: str, table: str, *settings: str) -> AsyncIterator[None]:
    """Hold a lock on a table against every other use; `settings` come before it."""
    async with connected(url) as connection, connection.transaction():
        for statement in (*settings, f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"):
            await connection.execute(statement)
        yield
