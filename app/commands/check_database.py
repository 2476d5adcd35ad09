"""The part of `check` about the database: its presence, its schema, its durability."""

import time

from app.commands.check_standbys import check_standbys
from app.commands.report import Report
from app.settings import CLOCK_TOLERANCE_S, Settings, SettingsError, check_deadlock_timeout
from sinks.timescale import hosts, inspection, schema, standbys
from sinks.timescale.errors import AddressError, DatabaseError, PrivilegeError

TIMEOUT_S = 3.0
# A query without a time locks each chunk and its two indexes.
LOCKS_PER_CHUNK = 3
# A worker's: for batches, for contested events, and for quarantine.
CONNECTIONS_PER_WORKER = 3
# The part of quarantine from which `check` warns.
NEARLY_FULL = 0.75
# The settings that make a commit durable, and the meaning of a value that does not.
DURABLE = {
    "fsync": {"on": "", "off": "a crash of the server's machine may cost all data"},
    "synchronous_commit": {
        "on": "",
        "remote_apply": "",
        "remote_write": "a commit waits for no standby's disk; the gateway's do",
        "local": "a commit waits for no standby; the gateway's do",
        "off": "a commit waits for no disk; the gateway's do",
    },
}


async def check_database(report: Report, settings: Settings) -> None:
    """Report on DATABASE_URL and on the server behind it."""
    try:
        async with hosts.connected(
            settings.database_url, timeout_s=TIMEOUT_S, command_timeout_s=TIMEOUT_S
        ) as connection:
            await _check(report, settings, connection)
    except AddressError as error:
        report.fail("DATABASE_URL", str(error), exit_code=2)
    except hosts.NoAnswer as error:
        for host in error.hosts:
            report.fail("database", host)
    except DatabaseError as error:
        report.fail("database", str(error))


async def _check(report: Report, settings: Settings, connection: hosts.Connection) -> None:
    check_connection(report, inspection.wire_of(connection))
    has_others = await _check_hosts(report, settings)
    server = await inspection.inspect(connection)
    _check_server(report, settings, server)
    is_direct = not has_others and await inspection.is_direct(connection)
    check_standbys(report, await standbys.replication(connection), is_direct=is_direct)
    if server.missing_migrations:
        report.fail("schema", f"{server.missing_migrations[0]} is missing: run migrate")
    else:
        await _check_data(report, connection)
        await _check_quarantine(report, settings, connection)
    await _check_commit(report, connection, server.settings["synchronous_standby_names"])


def check_connection(report: Report, wire: inspection.Wire) -> None:
    """Report on encryption and certificate: a connection that leaves the machine needs both."""
    if not wire.tls:
        text = "not encrypted"
    elif not wire.is_verified:
        text = f"{wire.tls}, certificate not verified"
    elif not wire.is_host_verified:
        text = f"{wire.tls}, certificate verified, its host name not"
    else:
        text = f"{wire.tls}, certificate verified"
    if wire.is_local:
        report.ok("database connection", f"{text}; it does not leave this machine")
    elif wire.is_verified:
        report.ok("database connection", text)
    else:
        report.warn("database connection", f"{text}: see sslmode in docs/deploying-database.md")


async def _check_hosts(report: Report, settings: Settings) -> bool:
    """Report the role of each host, where DATABASE_URL names several; returns whether it does."""
    found = await hosts.roles(settings.database_url, timeout_s=TIMEOUT_S)
    for role, line in found:
        (report.warn if role is hosts.Role.UNKNOWN else report.ok)("database host", line)
    primaries = [line for role, line in found if role is hosts.Role.PRIMARY]
    if len(primaries) > 1:
        report.warn(
            "database host",
            f"{len(primaries)} are primaries: one server with several addresses, or a split brain",
        )
    return bool(found)


def _check_server(report: Report, settings: Settings, server: inspection.Server) -> None:
    if server.timescaledb:
        report.ok("database", f"TimescaleDB {server.timescaledb} on PostgreSQL {server.version}")
    else:
        report.warn("database", f"PostgreSQL {server.version} without TimescaleDB: a plain table")
    for name, meanings in DURABLE.items():
        value = server.settings[name]
        if meaning := meanings[value]:
            report.fail(f"database setting {name}", value)
            report.warn(f"database setting {name}", meaning)
        else:
            report.ok(f"database setting {name}", value)
    deadlock_timeout = server.settings["deadlock_timeout"]
    try:
        check_deadlock_timeout(settings.commit_timeout_s, int(deadlock_timeout) / 1000)
        report.ok("database setting deadlock_timeout", f"{deadlock_timeout} ms")
    except SettingsError as error:
        report.fail("database setting deadlock_timeout", str(error), exit_code=2)
    needed = CONNECTIONS_PER_WORKER * settings.workers
    report.ok(
        "database setting max_connections",
        f"{server.settings['max_connections']}; this host's workers use {needed}",
    )
    if server.is_pooled:
        _check_role(report, settings, server)


def _check_role(report: Report, settings: Settings, server: inspection.Server) -> None:
    """Report the settings that a pooler does not pass on and that the role lacks."""
    report.ok("pooler", "detected: pg_backend_pid() differs from the process ID of the log-in")
    lacking = server.lacking(settings.commit_timeout_s)
    for name, mend in lacking.items():
        value = server.settings[name]
        report.fail(f"role setting {name}", f"{value}, and a pooler passes none on: {mend}")
    if lacking:
        report.warn(
            "pooler", "its server connections keep the role settings of their log-in: run RECONNECT"
        )
    else:
        report.ok("role settings", "all that the gateway needs behind a pooler")


async def _check_data(report: Report, connection: hosts.Connection) -> None:
    """Report the generation, foreign triggers and indexes, the clock, and the locks."""
    identity = await schema.read_identity(connection)
    ahead_s = time.time() - identity.server_time_s
    report.ok("schema", f"up to date, generation {identity.generation}")
    for name, effect in (await inspection.foreign_objects(connection)).items():
        report.warn("schema", f"{name} is not ours: {effect}")
    apart = f"ours is {abs(ahead_s):.1f} s {'ahead of it' if ahead_s > 0 else 'behind it'}"
    if abs(ahead_s) > CLOCK_TOLERANCE_S:
        report.fail("database clock", f"{apart}: one of them is wrong")
    else:
        report.ok("database clock", apart)
    chunks, locks = await inspection.chunks_and_locks(connection)
    if chunks * LOCKS_PER_CHUNK > locks / 2:
        report.warn(
            "chunks",
            f"{chunks}: a query without a time runs out of the server's {locks} locks before they "
            "have doubled; raise max_locks_per_transaction, or set RETENTION_D",
        )
    else:
        report.ok("chunks", f"{chunks}; the server has {locks} locks")


async def _check_quarantine(
    report: Report, settings: Settings, connection: hosts.Connection
) -> None:
    """Report the rights on the tables of quarantine, and its size."""
    if not settings.quarantine_d:
        report.ok("quarantine", "off, QUARANTINE_D is 0: dropped callbacks are not kept")
        return
    if grant := await inspection.missing_grant(connection):
        report.fail("quarantine", f"the role lacks rights, drops are answered 500: {grant}")
        return
    size_mb = await inspection.quarantine_bytes(connection) / 1_000_000
    text = f"{size_mb:.1f} of {settings.quarantine_max_mb} MB, {settings.quarantine_d} days"
    if size_mb < NEARLY_FULL * settings.quarantine_max_mb:
        report.ok("quarantine", text)
    else:
        report.warn(
            "quarantine",
            f"{text}: nearly full, drops that have no place are not kept; map or ignore the most "
            "frequent, or raise QUARANTINE_MAX_MB",
        )


async def _check_commit(report: Report, connection: hosts.Connection, names: str) -> None:
    """Commit a message, and report whether the synchronous standbys confirm it."""
    subject = "database setting synchronous_standby_names"
    started = time.monotonic()
    try:
        await inspection.try_commit(connection)
    except PrivilegeError as error:
        report.fail("database commit", f"{error}: without it no duplicate can be confirmed")
    except inspection.NotConfirmed:
        report.fail(
            subject,
            f"{names}: none of them confirms a commit within {TIMEOUT_S:.0f} s, every callback "
            "is answered 500",
        )
    else:
        took_ms = 1000 * (time.monotonic() - started)
        confirmed = f"{names}: a commit was confirmed in {took_ms:.0f} ms"
        report.ok(subject, confirmed if names else "none: no commit waits for a standby")
