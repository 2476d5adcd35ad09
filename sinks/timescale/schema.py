"""The schema of the database: bring it up to date, tell whose data is in it, make chunks."""

import time
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
# Of the hash: as many characters of every key in Redis are a third more.
GENERATION_BYTES = 9
# Any number that no other program locks in the same database.
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


class SchemaError(DatabaseError):
    """The schema is not the one that this version needs; the message says what to do."""


@cache
def migrations() -> Mapping[str, str]:
    """Return the SQL of each migration by its name, in order."""
    return {path.stem: path.read_text() for path in sorted(MIGRATIONS.glob("*.sql"))}


async def migrate(connection: asyncpg.Connection) -> Sequence[str]:
    """Apply the missing migrations in one transaction, and return their names.

    Safe to run from several places at once: the first one works, the others wait and find
    nothing left to do.
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
    async with at_leisure(connection):
        await keep_chunk_ahead(connection)
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


# PostgreSQL leaves a schema without USAGE out of the search, as if its tables were not there.
_HIDDEN = """
SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE relname = 'schema_migrations' AND NOT has_schema_privilege(relnamespace, 'USAGE')
AND nspname IN (
    SELECT CASE name WHEN '"$user"' THEN current_user ELSE trim('"' FROM name) END
    FROM regexp_split_to_table(current_setting('search_path'), ', *') AS name
)
"""


async def missing_migrations(connection: asyncpg.Connection) -> Sequence[str]:
    """Return the names of the migrations that the database has not seen, in order.

    Raises SchemaError where the role may not look.
    """
    if await connection.fetchval("SELECT to_regclass('schema_migrations')") is None:
        if hidden := await connection.fetchval(_HIDDEN):
            raise SchemaError(f"the role lacks USAGE on the schema {hidden}: grant it")
        return list(migrations())
    applied = {record[0] for record in await connection.fetch("SELECT name FROM schema_migrations")}
    return [name for name in migrations() if name not in applied]


class Identity(NamedTuple):
    """Whose data is behind a connection, and how far our clock is ahead of its server's."""

    generation: str
    clock_ahead_s: float


async def read_identity(connection: asyncpg.Connection) -> Identity:
    """Return a short name for the data behind a connection, other for any other data; the clock.

    The name is a hash of the random value that the migration stored, and of what changes when
    that value was copied with the data: the cluster, its timeline (a restored backup starts a new
    one, and so does a fail-over), the start of the server (a snapshot of its disk that was put
    back stays on the timeline), the database and the table.

    Raises SchemaError where migrations are missing.
    """
    if missing := await missing_migrations(connection):
        raise SchemaError(f"migration {missing[0]} is missing: run `python -m app migrate`")
    before = time.time()
    record = await connection.fetchrow(_IDENTITY)
    after = time.time()
    if record is None:
        raise SchemaError("the table `generation` is empty: it was filled by the migration")
    server_clock, *identity = record
    digest = blake2b(repr(identity).encode(), digest_size=GENERATION_BYTES).digest()
    return Identity(urlsafe_b64encode(digest).decode(), (before + after) / 2 - server_clock)


async def timescaledb_version(connection: asyncpg.Connection) -> str | None:
    """Return TimescaleDB's version in this database; None where there is none."""
    version: str | None = await connection.fetchval(
        "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"
    )
    return version


async def is_hypertable(connection: asyncpg.Connection) -> bool:
    """Whether `events` is a hypertable here, or an ordinary table."""
    if await timescaledb_version(connection) is None:
        return False
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM timescaledb_information.hypertables "
            "WHERE hypertable_name = 'events' AND hypertable_schema = current_schema())"
        )
    )


async def keep_chunk_ahead(connection: asyncpg.Connection, lock_timeout_s: float = 0) -> None:
    """Make the chunks of now and of the coming interval, so that no batch has to wait for them.

    Waits so long for each lock; 0 is for ever.
    """
    if not await is_hypertable(connection):
        return
    for ahead in (timedelta(0), CHUNK_INTERVAL):
        moment = datetime.now(UTC) + ahead
        exists = await connection.fetchval(
            "SELECT true FROM timescaledb_information.chunks "
            "WHERE hypertable_name = 'events' AND hypertable_schema = current_schema() "
            "AND range_start <= $1 AND $1 < range_end",
            moment,
        )
        if not exists:
            event_id = uuid4()
            # TimescaleDB has no public way to make a chunk but to write a row into it. What comes
            # as one message is one transaction.
            await connection.execute(
                f"SET LOCAL lock_timeout = {milliseconds(lock_timeout_s)}; "  # noqa: S608 - our own
                "INSERT INTO events (event_id, occurred_at, received_at, workspace_id, vendor, "
                "app_token, event_type, properties) "
                f"VALUES ('{event_id}', '{moment}', '{moment}', '', '', '', '', '{{}}'); "
                f"DELETE FROM events WHERE occurred_at = '{moment}' AND event_id = '{event_id}'"
            )
