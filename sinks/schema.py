"""The schema of the database: bring it up to date, look at it, apply the retention."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import asyncpg

from sinks.session import leads_through_a_pooler, milliseconds, role_settings

MIGRATIONS = Path(__file__).parent / "migrations"
CHUNK_INTERVAL = timedelta(days=1)
DELETE_ROWS = 50_000
# Any number that no other program locks in the same database.
_MIGRATION_LOCK = 7_205_759_403


class SchemaError(Exception):
    """The schema is not the one that this version needs; the message says what to do."""


class AddressError(Exception):
    """The driver does not understand the address of the database, which is not told here."""


class NoAnswer(Exception):
    """The database cannot be reached, or lets nobody in; the message is one line."""


async def connect(
    database_url: str, *, timeout_s: float, command_timeout_s: float | None = None
) -> asyncpg.Connection:
    """Return a connection for an operator's command; raises AddressError or NoAnswer."""
    try:
        return await asyncpg.connect(
            database_url,
            timeout=timeout_s,
            command_timeout=command_timeout_s,
            statement_cache_size=0,  # a pooler may lose what was prepared under a name
        )
    except ValueError:
        raise AddressError("not an address that the driver understands") from None
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        detail = str(error).partition("\n")[0] or type(error).__name__
        raise NoAnswer(f"does not answer: {detail}") from None


@cache
def migrations() -> Mapping[str, str]:
    """Return the SQL of each migration by its name, in order."""
    return {path.stem: path.read_text() for path in sorted(MIGRATIONS.glob("*.sql"))}


async def migrate(connection: asyncpg.Connection) -> Sequence[str]:
    """Apply the missing migrations in one transaction, and return their names.

    Safe to run from several places at once: the first one works, the others wait and find
    nothing left to do.
    """
    async with _at_leisure(connection):
        await connection.execute(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations ("
            "name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        missing = await missing_migrations(connection)
        for name in missing:
            await connection.execute(migrations()[name])
            await connection.execute("INSERT INTO schema_migrations (name) VALUES ($1)", name)
    async with _at_leisure(connection):
        await keep_chunk_ahead(connection)
    return missing


@asynccontextmanager
async def _at_leisure(connection: asyncpg.Connection) -> AsyncIterator[None]:
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


async def read_generation(connection: asyncpg.Connection) -> str:
    """Return a short name for the data behind a connection, other for any other data.

    It starts with the random value that the migration stored. What follows changes when that
    value was copied with the data: the cluster, its timeline (a restored backup starts a new one,
    and so does a fail-over), the database and the table.

    Raises SchemaError where migrations are missing.
    """
    if missing := await missing_migrations(connection):
        raise SchemaError(f"migration {missing[0]} is missing: run `python -m app migrate`")
    record = await connection.fetchrow(
        "SELECT value, (SELECT system_identifier FROM pg_control_system()), "
        "left(pg_walfile_name(pg_current_wal_lsn()), 8), "
        "(SELECT oid FROM pg_database WHERE datname = current_database()), "
        "'events'::regclass::oid FROM generation"
    )
    if record is None:
        raise SchemaError("the table `generation` is empty: it was filled by the migration")
    value, *identity = record
    return f"{value}" + blake2b(repr(identity).encode(), digest_size=2).hexdigest()


async def timescaledb_version(connection: asyncpg.Connection) -> str | None:
    """Return TimescaleDB's version in this database; None where there is none."""
    version: str | None = await connection.fetchval(
        "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"
    )
    return version


class Server(NamedTuple):
    """What `inspect` finds: versions, and the settings that matter, as they are in force."""

    version: str
    timescaledb: str | None
    missing_migrations: Sequence[str]
    settings: Mapping[str, str]
    role: str  # as SQL writes it
    is_pooled: bool

    def lacking(self, commit_timeout_s: float) -> Mapping[str, str]:
        """Return the settings that the role needs behind a pooler, each with what gives it them."""
        return {
            name: f"ALTER ROLE {self.role} SET {name} = '{wanted}';"
            for name, wanted in role_settings(commit_timeout_s).items()
            if self.is_pooled and not _is_enough(name, self.settings[name], wanted)
        }


def _is_enough(name: str, value: str, wanted: str) -> bool:
    if not wanted.isdigit():
        return value == wanted
    # A Unix socket has no keepalives, and says so; without TCP none are needed.
    return 0 < int(value) <= int(wanted) or (value == "0" and name.startswith("tcp_"))


async def inspect(connection: asyncpg.Connection) -> Server:
    """Return what an operator should know of a database."""
    names = ["server_version", "fsync", "synchronous_commit", "deadlock_timeout", "max_connections"]
    settings = await connection.fetch(
        "SELECT name, setting FROM pg_settings WHERE name = ANY($1)", [*names, *role_settings(0)]
    )
    values = {record["name"]: record["setting"] for record in settings}
    return Server(
        values["server_version"],
        await timescaledb_version(connection),
        await missing_migrations(connection),
        values,
        await connection.fetchval("SELECT quote_ident(current_user)"),
        await leads_through_a_pooler(connection),
    )


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


async def retain(connection: asyncpg.Connection, retention_d: int) -> AsyncIterator[str]:
    """Delete what occurred more than `retention_d` days ago; yields lines of progress.

    A hypertable loses whole chunks; an ordinary table loses rows, some at a time.
    """
    cutoff = datetime.now(UTC) - timedelta(days=retention_d)
    if await is_hypertable(connection):
        async with _at_leisure(connection):
            chunks = await connection.fetch("SELECT drop_chunks('events', $1::timestamptz)", cutoff)
        yield f"events: {len(chunks)} chunks dropped that ended before {cutoff:%Y-%m-%d %H:%M} UTC"
        # A chunk that has not ended keeps its rows, so their stable IDs are kept too.
        cutoff -= CHUNK_INTERVAL
    else:
        async for line in _delete(connection, "events", cutoff):
            yield line
    async for line in _delete(connection, "stable_events", cutoff):
        yield line


async def _delete(
    connection: asyncpg.Connection, table: str, cutoff: datetime
) -> AsyncIterator[str]:
    deleted = 0
    while True:
        async with _at_leisure(connection):
            status = await connection.execute(
                f"DELETE FROM {table} WHERE ctid = ANY(ARRAY("  # noqa: S608 - made of constants
                f"SELECT ctid FROM {table} WHERE occurred_at < $1 LIMIT {DELETE_ROWS}))",
                cutoff,
            )
        rows = int(status.split()[-1])
        deleted += rows
        if rows < DELETE_ROWS:
            break
        yield f"{table}: {deleted} rows deleted so far"
    yield f"{table}: {deleted} rows deleted that occurred before {cutoff:%Y-%m-%d %H:%M} UTC"
