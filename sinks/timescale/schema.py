"""The schema of the database: its migrations, the identity of its data, its chunks."""

from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import asyncpg

from sinks.timescale.errors import DatabaseError
from sinks.timescale.session import milliseconds

MIGRATIONS = Path(__file__).parent / "migrations"
CHUNK_INTERVAL = timedelta(days=1)
# In base64 they are 12 characters of every key in Redis.
GENERATION_BYTES = 9
# A number that no other program locks in the same database.
_MIGRATION_LOCK = 7_205_759_403
# Times as numbers: their text follows the settings of the session.
_IDENTITY = """
SELECT extract(epoch FROM clock_timestamp())::float8, value,
    (SELECT system_identifier FROM pg_control_system()),
    left(pg_walfile_name(pg_current_wal_lsn()), 8),
    (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8,
    (SELECT oid FROM pg_database WHERE datname = current_database()),
    'events'::regclass::oid
FROM generation
"""
# By hypertable: a row is written and deleted again. TimescaleDB has no other public way to make a
# chunk.
MAKES_CHUNK = {
    "events": """
        INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, app_token,
            event_type, properties)
        VALUES ('{row}', '{moment}', '{moment}', '', '', '', '', '{{}}');
        DELETE FROM events WHERE occurred_at = '{moment}' AND event_id = '{row}'
    """,
    "dropped": """
        INSERT INTO dropped (received_at, vendor, workspace_id, app_token, reason, subject, method,
            query, content_type, body)
        VALUES ('{moment}', '', '', '', '', '{row}', '', '', '', '');
        DELETE FROM dropped WHERE received_at = '{moment}' AND subject = '{row}'
    """,
}


class SchemaError(DatabaseError):
    """The schema is not that of this version. The message has the remedy."""


@cache
def migrations() -> Mapping[str, str]:
    """Return the SQL of each migration by its name, in order."""
    return {path.stem: path.read_text() for path in sorted(MIGRATIONS.glob("*.sql"))}


async def migrate(connection: asyncpg.Connection) -> Sequence[str]:
    """Apply the missing migrations in one transaction, and return their names.

    Safe to run from several places at once: one migrates, the others wait and find nothing to do.
    """
    async with at_leisure(connection):
        await connection.execute(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            "name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        missing = await missing_migrations(connection)
        for name in missing:
            await connection.execute(migrations()[name])
            await connection.execute("INSERT INTO schema_migrations (name) VALUES ($1)", name)
    for table in MAKES_CHUNK:
        async with at_leisure(connection):
            await keep_chunk_ahead(connection, table, datetime.now(UTC))
    return missing


@asynccontextmanager
async def at_leisure(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Run a command's statements as one transaction, without the time-outs of a gateway's role."""
    async with connection.transaction():
        await connection.execute(
            "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0; "
            "SET LOCAL idle_in_transaction_session_timeout = 0"
        )
        yield


# PostgreSQL skips a schema without USAGE in the search, as if it had no tables.
_HIDDEN = """
SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relname = 'schema_migrations' AND NOT has_schema_privilege(relnamespace, 'USAGE')
AND nspname IN (
    SELECT CASE name WHEN '"$user"' THEN current_user ELSE trim('"' FROM name) END
    FROM regexp_split_to_table(current_setting('search_path'), ', *') AS name
)
"""


async def missing_migrations(connection: asyncpg.Connection) -> Sequence[str]:
    """Return the names of the migrations that the database lacks, in order.

    Raises SchemaError where the role may not read them.
    """
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        hidden: str | None = await connection.fetchval(_HIDDEN)
        if hidden is not None:
            raise SchemaError(f"the role lacks USAGE on the schema {hidden}: grant it")
        return list(migrations())
    applied: set[str] = {
        record[0] for record in await connection.fetch("SELECT name FROM schema_migrations")
    }
    return [name for name in migrations() if name not in applied]


class Identity(NamedTuple):
    """The name of the data behind a connection, and the time of its server in Unix seconds."""

    generation: str
    server_time_s: float


async def read_identity(connection: asyncpg.Connection) -> Identity:
    """Return the identity of the data behind a connection.

    The generation is a hash of the random value that the migration stored, and of values that
    change when that one was copied with the data: the cluster, its timeline (a restored backup
    starts a new one, and so does a failover), the start of the server (a restored snapshot of the
    disk stays on its timeline), the database and the table.

    Raises SchemaError where migrations are missing.
    """
    if missing := await missing_migrations(connection):
        raise SchemaError(f"migration {missing[0]} is missing: run `python -m app migrate`")
    record = await connection.fetchrow(_IDENTITY)
    if record is None:
        raise SchemaError("the table `generation` is empty: it was filled by the migration")
    server_time_s: float
    parts: list[object]
    server_time_s, *parts = record
    digest = blake2b(repr(parts).encode(), digest_size=GENERATION_BYTES).digest()
    return Identity(urlsafe_b64encode(digest).decode(), server_time_s)


async def timescaledb_version(connection: asyncpg.Connection) -> str | None:
    """Return the version of TimescaleDB in this database; None without it."""
    version: str | None = await connection.fetchval(
        "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"
    )
    return version


async def is_hypertable(connection: asyncpg.Connection, table: str) -> bool:
    """Whether a table is a hypertable, and not an ordinary one."""
    if await timescaledb_version(connection) is None:
        return False
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM timescaledb_information.hypertables "
            "WHERE hypertable_name = $1 AND hypertable_schema = current_schema())",
            table,
        )
    )


async def keep_chunk_ahead(
    connection: asyncpg.Connection, table: str, now: datetime, lock_timeout_s: float = 0
) -> None:
    """Make the chunks of `now` and of the coming interval, so that no batch waits for them.

    `lock_timeout_s` is for each lock; 0 is for ever.
    """
    if not await is_hypertable(connection, table):
        return
    for ahead in (timedelta(0), CHUNK_INTERVAL):
        moment = now + ahead
        exists: bool | None = await connection.fetchval(
            "SELECT true FROM timescaledb_information.chunks "
            "WHERE hypertable_name = $1 AND hypertable_schema = current_schema() "
            "AND range_start <= $2 AND $2 < range_end",
            table,
            moment,
        )
        if not exists:
            made = MAKES_CHUNK[table].format(moment=moment, row=uuid4())
            # The statements of one message are one transaction.
            await connection.execute(
                f"SET LOCAL lock_timeout = {milliseconds(lock_timeout_s)}; {made}"
            )
