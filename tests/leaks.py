"""The places that hold the secret of the tests, although none may: files, tables, Redis."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio as redis

# A lock that a test leaves behind raises, and does not hang.
PATIENCE_MS = 10_000
REDIS_AT_ONCE = 500

# Views are searched too; objects of an extension hold nothing of ours, and a chunk is
# found through its hypertable.
_RELATIONS = """
SELECT format('%I.%I', nspname, relname)
FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relkind IN ('r', 'p', 'v', 'm') AND nspname NOT LIKE ALL
    ('{pg\\_%,information\\_schema,\\_timescaledb\\_%,timescaledb\\_%}'::text[])
"""


def in_files(folder: Path, needle: str) -> Iterator[str]:
    """Every file below a folder that holds the needle, or has it in its name."""
    # Unlike `rglob`, `walk` passes over a folder that is gone when its turn comes.
    for parent, folders, files in os.walk(folder):
        if any(needle in name for name in (*folders, *files)):
            yield f"a name in {parent}"
        for path in map(Path(parent).joinpath, files):
            try:
                if path.is_file() and path.stat().st_size and _is_in_file(path, needle):
                    yield str(path)
            except FileNotFoundError:  # gone meanwhile
                continue


def _is_in_file(path: Path, needle: str) -> bool:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(needle.encode()) != -1


def in_report(report: pytest.TestReport, needle: str) -> Iterator[str]:
    """The output and log of a test, where they hold the needle."""
    for name, text in report.sections:
        if needle in text:
            yield f"{name} of {report.nodeid}"


async def in_database(url: str, needle: str) -> list[str]:
    """The tables and views of a database that hold the needle in any column."""
    settings = {"lock_timeout": str(PATIENCE_MS), "statement_timeout": str(PATIENCE_MS)}
    connection = await asyncpg.connect(url, server_settings=settings)
    try:
        names = [row[0] for row in await connection.fetch(_RELATIONS)]
        searches = (
            f"SELECT '{name}' WHERE EXISTS"
            f" (SELECT FROM {name} AS t WHERE position($1::text IN t::text) > 0)"
            for name in names
        )
        found = await connection.fetch(" UNION ALL ".join(searches), needle) if names else []
        return [row[0] for row in found]
    finally:
        await connection.close()


async def in_redis(url: str, needle: str) -> list[str]:
    """The kinds of keys in Redis that hold the needle, in their name or in their value."""
    found = set()
    async with redis.from_url(url) as client:
        keys = [key async for key in client.scan_iter(count=REDIS_AT_ONCE)]
        for first in range(0, len(keys), REDIS_AT_ONCE):
            some = keys[first : first + REDIS_AT_ONCE]
            pipeline = client.pipeline(transaction=False)
            for key in some:
                pipeline.type(key)
            for kind, key in zip(await pipeline.execute(), some, strict=True):
                _ask(pipeline, kind.decode(), key)
            held = zip(some, await pipeline.execute(), strict=True)
            found |= {key for key, value in held if needle.encode() in key + repr(value).encode()}
    return [f"a Redis key of {len(key)} bytes" for key in sorted(found)]


def _ask(pipeline: "redis.client.Pipeline", kind: str, key: bytes) -> None:
    match kind:
        case "hash":
            pipeline.hgetall(key)
        case "set":
            pipeline.smembers(key)
        case "zset":
            pipeline.zrange(key, 0, -1)
        case "list":
            pipeline.lrange(key, 0, -1)
        case _:
            pipeline.get(key)
