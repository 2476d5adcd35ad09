"""The inspection of a database for `check`: versions, settings, foreign triggers and indexes."""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple

import asyncpg

from sinks.timescale.errors import DatabaseError, PrivilegeError, translated
from sinks.timescale.schema import is_hypertable, missing_migrations, timescaledb_version
from sinks.timescale.session import DURABLE, leads_through_a_pooler, role_settings

_SETTINGS = (
    "server_version", "fsync", "synchronous_commit", "synchronous_standby_names",
    "deadlock_timeout", "max_connections", *role_settings(0),
)  # fmt: skip
_OURS = "ARRAY[to_regclass('events'), to_regclass('stable_events')]"
# TimescaleDB's own trigger keeps rows out of the table above the chunks. 4 is INSERT.
_TRIGGERS = f"""
SELECT format('trigger %I on %s', tgname, tgrelid::regclass)
FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
WHERE tgrelid = ANY({_OURS}) AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & 4 > 0
    AND NOT starts_with(pronamespace::regnamespace::text, '_timescaledb')
ORDER BY 1
"""  # noqa: S608 - made of constants
_INDEXES = f"""
SELECT format('index %s on %s', indexrelid::regclass, indrelid::regclass), indisunique,
    indexprs IS NOT NULL OR indpred IS NOT NULL
FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid
WHERE indrelid = ANY({_OURS})
    AND relname NOT IN ('events_occurred_at_event_id', 'stable_events_pkey')
ORDER BY 1
"""  # noqa: S608 - made of constants

_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
_UNGRANTED = f"""
SELECT string_agg(name, ', ' ORDER BY place)
FROM unnest(ARRAY['dropped', 'quarantine_usage', 'rejected', 'imports'])
    WITH ORDINALITY AS tables (name, place)
WHERE NOT (
    SELECT bool_and(has_table_privilege(name, kind))
    FROM regexp_split_to_table('{_RIGHTS}', ', ') AS kind
)
"""  # noqa: S608 - made of constants


class NotConfirmed(DatabaseError):
    """A commit ended in the time-out: no standby has confirmed it."""


class Server(NamedTuple):
    """Versions, and the values in force of the settings that matter."""

    version: str
    timescaledb: str | None
    missing_migrations: Sequence[str]
    settings: Mapping[str, str]
    role: str  # as SQL writes it
    is_pooled: bool

    def lacking(self, commit_timeout_s: float) -> Mapping[str, str]:
        """Return the settings that the role lacks behind a pooler, each with SQL that sets it."""
        return {
            name: f"ALTER ROLE {self.role} SET {name} = '{wanted}';"
            for name, wanted in role_settings(commit_timeout_s).items()
            if self.is_pooled and not _is_enough(name, self.settings[name], wanted)
        }


class Wire(NamedTuple):
    """The transport of a connection: to the server, or to the pooler in front of it."""

    is_local: bool  # it does not leave the machine
    tls: str = ""  # the version, where it is encrypted
    is_verified: bool = False  # the certificate is signed by a CA that we trust
    is_host_verified: bool = False  # and issued for the host of the address


def wire_of(connection: asyncpg.Connection) -> Wire:
    """Return the transport of an open connection."""
    # asyncpg does not expose it, and the server reports its own side of a pooler.
    transport: asyncio.BaseTransport = connection._transport  # type: ignore[attr-defined]  # noqa: SLF001 - see above
    peer = transport.get_extra_info("peername")
    is_local = not isinstance(peer, tuple) or ip_address(peer[0]).is_loopback
    tls: ssl.SSLObject | None = transport.get_extra_info("ssl_object")
    if tls is None:
        return Wire(is_local)
    is_verified = tls.context.verify_mode is ssl.CERT_REQUIRED
    version = str(tls.version()).replace("TLSv", "TLS ")
    return Wire(is_local, version, is_verified, is_verified and tls.context.check_hostname)


async def is_direct(connection: asyncpg.Connection) -> bool:
    """Whether a connection ends at the server itself: at no proxy or pooler in front of it."""
    transport: asyncio.BaseTransport = connection._transport  # type: ignore[attr-defined]  # noqa: SLF001 - as above
    peer = transport.get_extra_info("peername")
    host: str | None = await connection.fetchval("SELECT host(inet_server_addr())")
    port: int | None = await connection.fetchval("SELECT inet_server_port()")
    return ends_at(peer, host, port)


def ends_at(peer: object, host: str | None, port: int | None) -> bool:
    """Whether our peer is the address that the server reports: None on a Unix socket.

    Behind NAT or a service of Kubernetes it is not, although nothing else is in between.
    """
    match peer:
        case (str(name), int(number), *_):
            return host is not None and (_address(name), number) == (_address(host), port)
        case _:
            return host is None


def _address(text: str) -> IPv4Address | IPv6Address:
    """Return an address in one of its spellings: without a zone, and IPv4 not within IPv6."""
    address = ip_address(text.partition("%")[0])
    return (address.ipv4_mapped if isinstance(address, IPv6Address) else None) or address


def _is_enough(name: str, value: str, wanted: str) -> bool:
    if not wanted.isdigit():
        return value == wanted
    # On a Unix socket the value is 0, and none is needed.
    return 0 < int(value) <= int(wanted) or (value == "0" and name.startswith("tcp_"))


async def inspect(connection: asyncpg.Connection) -> Server:
    """Return the versions and settings of a server."""
    settings = await connection.fetch(
        "SELECT name, setting FROM pg_settings WHERE name = ANY($1)", _SETTINGS
    )
    values: dict[str, str] = {record["name"]: record["setting"] for record in settings}
    return Server(
        values["server_version"],
        await timescaledb_version(connection),
        await missing_migrations(connection),
        values,
        await connection.fetchval("SELECT quote_ident(current_user)"),
        await leads_through_a_pooler(connection),
    )


async def foreign_objects(connection: asyncpg.Connection) -> Mapping[str, str]:
    """Return the foreign triggers and indexes on our tables, each with its effect on events."""
    found: dict[str, str] = {}
    trigger: str
    for (trigger,) in await connection.fetch(_TRIGGERS):
        found[trigger] = "an event that it leaves out or fails for is answered 500"
    index: str
    is_unique: bool
    is_computed: bool
    for index, is_unique, is_computed in await connection.fetch(_INDEXES):
        if is_unique:
            found[index] = "it is unique: an event that it refuses is answered 500"
        elif is_computed:
            found[index] = "an event that its expression fails for is dropped as `refused`"
    return found


async def chunks_and_locks(connection: asyncpg.Connection) -> tuple[int, int]:
    """Return the number of chunks of `events`, and the number of locks the server has room for."""
    chunks = 0
    if await is_hypertable(connection, "events"):
        chunks = await connection.fetchval("SELECT count(*) FROM show_chunks('events')")
    locks: int = await connection.fetchval(
        "SELECT current_setting('max_locks_per_transaction')::int * ("
        "current_setting('max_connections')::int "
        "+ current_setting('max_prepared_transactions')::int)"
    )
    return chunks, locks


async def missing_grant(connection: asyncpg.Connection) -> str | None:
    """Return the statement that gives the role its rights on the tables of quarantine."""
    tables: str | None = await connection.fetchval(_UNGRANTED)
    role: str = await connection.fetchval("SELECT quote_ident(current_user)")
    return f"GRANT {_RIGHTS} ON {tables} TO {role};" if tables else None


async def quarantine_bytes(connection: asyncpg.Connection) -> int:
    """Return the size of the drops in quarantine, as the gateways count it."""
    size: int = await connection.fetchval(
        "SELECT coalesce(sum(bytes), 0)::int8 FROM quarantine_usage"
    )
    return size


async def try_commit(connection: asyncpg.Connection) -> None:
    """Commit a message to the WAL as durably as the gateway commits an event.

    Raises NotConfirmed where no standby confirms it within the time-out of the connection, and
    PrivilegeError where the role may not write messages.
    """
    try:
        with translated():
            await connection.execute(
                f"BEGIN; {DURABLE.format(is_local='true')}; "
                "SELECT pg_logical_emit_message(true, 'flokit', ''); COMMIT"
            )
    except PrivilegeError:
        await connection.execute("ROLLBACK")
        raise
    except DatabaseError as error:
        if isinstance(error.__cause__, TimeoutError):
            raise NotConfirmed("no standby confirms a commit in time") from error
        raise
