"""The price of the index on `received_at`, and the time that it saves a reader."""

import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from urllib.parse import urlsplit

from bench.micro.part import Prepare, Run
from bench.testbed.environment import Environment
from bench.testbed.usage import PROC
from sinks.timescale.schema import migrate

ROWS, CHUNKS = 500_000, 10
_NUMBERS = itertools.count(1)
_SERVERS_OF_THE_SINK = "SELECT pid FROM pg_stat_activity WHERE application_name = 'flokit-gateway'"
# Rows in the order of their arrival. The last arrive when the reading begins.
_FILL = f"""
INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token, event_type,
    user_id, adid, properties)
SELECT gen_random_uuid(), moment, moment, 'ws_shop', 'adjust', 'abc123token', 'purchase',
    'u' || number, md5(number::text), '{{"revenue": "4.99", "currency": "EUR"}}'
FROM generate_series({ROWS}, 1, -1) AS number,
    LATERAL (SELECT now() - number * interval '{CHUNKS} days' / {ROWS} AS moment) AS moments
"""  # noqa: S608 - made of constants
_NEWEST = "CREATE TABLE newest AS SELECT max(received_at) AS received_at FROM events"
_READ = """
SELECT count(*) FROM events
WHERE received_at > (SELECT max(received_at) FROM newest) - interval '90 seconds'
"""


def in_server(prepare: Prepare) -> Prepare:
    """Measure the CPU time of the server's processes that serve the sink."""

    @asynccontextmanager
    async def prepared(environment: Environment | None) -> AsyncIterator[Run]:
        assert environment is not None
        async with prepare(environment) as measured:

            async def run(number: int) -> float:
                before = await _server_cpu_s(environment)
                await measured(number)
                return await _server_cpu_s(environment) - before

            yield run

    return prepared


def unindexed(prepare: Prepare) -> Prepare:
    """Measure a part in another database of the same server, without the index."""

    @asynccontextmanager
    async def prepared(environment: Environment | None) -> AsyncIterator[Run]:
        assert environment is not None
        name = f"unindexed_{next(_NUMBERS)}"
        await environment.execute(f"CREATE DATABASE {name}")
        url = urlsplit(environment.servers.database_url)._replace(path=f"/{name}").geturl()
        servers = replace(environment.servers, database_url=url)
        beside = Environment(servers, environment.folder, environment.environ)
        async with beside.connected() as connection:
            await migrate(connection)
            await connection.execute("DROP INDEX events_received_at")
        async with prepare(beside) as run:
            yield run

    return prepared


@asynccontextmanager
async def reading(environment: Environment | None) -> AsyncIterator[Run]:
    """Read the rows of the last 90 seconds, out of many in several chunks."""
    assert environment is not None
    async with environment.connected() as connection:
        await connection.execute(_FILL)
        await connection.execute(_NEWEST)
        await connection.execute("VACUUM ANALYZE events")

        async def run(number: int) -> float:
            began = time.perf_counter()
            for _ in range(number):
                await connection.fetchval(_READ)
            return time.perf_counter() - began

        yield run


async def _server_cpu_s(environment: Environment) -> float:
    async with environment.connected() as connection:
        records = await connection.fetch(_SERVERS_OF_THE_SINK)
    texts = [(PROC / str(record[0]) / "schedstat").read_text() for record in records]
    return sum(int(text.split()[0]) for text in texts) / 1e9
