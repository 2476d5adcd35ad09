"""The part of `check` about the database: whether it is there, ours, and keeps what it commits."""

import time

import asyncpg

from app.commands.report import Report
from app.settings import CLOCK_TOLERANCE_S, Settings, SettingsError, check_deadlock_timeout
from sinks.timescale import hosts, inspection, schema

TIMEOUT_S = 3.0
# A query without a time locks each chunk and its two indexes.
LOCKS_PER_CHUNK = 3
# What the promise stands on, and what another value means for what was committed.
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
    """Tell all that an operator should know of DATABASE_URL and what answers there."""
    try:
        connection = await hosts.connect(
            settings.database_url, timeout_s=TIMEOUT_S, command_timeout_s=TIMEOUT_S
        )
    except hosts.AddressError as error:
        report.fail("DATABASE_URL", str(error), exit_code=2)
        return
    except hosts.NoAnswer as error:
        for host in error.hosts:
            report.fail("database", host)
        return
    try:
        check_connection(report, inspection.wire_of(connection))
        await _check_hosts(report, settings)
        server = await inspection.inspect(connection)
        _check_server(report, settings, server)
        if server.missing_migrations:
            report.fail("schema", f"{server.missing_migrations[0]} is missing: run migrate")
        else:
            await _check_data(report, connection)
        await _check_commit(report, connection)
    except hosts.AddressError as error:
        report.fail("DATABASE_URL", str(error), exit_code=2)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, schema.SchemaError, OSError) as error:
        report.fail("database", str(error) or type(error).__name__)
    finally:
        await hosts.close(connection)


def check_connection(report: Report, wire: inspection.Wire) -> None:
    """Tell who may read along, or stand in the server's place: nobody may off this machine."""
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


async def _check_hosts(report: Report, settings: Settings) -> None:
    """Tell what each host is, where DATABASE_URL names several."""
    found = await hosts.roles(settings.database_url, timeout_s=TIMEOUT_S)
    for role, line in found:
        (report.warn if role is hosts.Role.UNKNOWN else report.ok)("database host", line)
    primaries = [line for role, line in found if role is hosts.Role.PRIMARY]
    if len(primaries) > 1:
        report.warn(
            "database host",
            f"{len(primaries)} are primaries: one server with several addresses, or a split brain",
        )


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
    needed = 2 * settings.workers
    report.ok(
        "database setting max_connections",
        f"{server.settings['max_connections']}; this host's workers use {needed}",
    )
    if server.is_pooled:
        _check_role(report, settings, server)


def _check_role(report: Report, settings: Settings, server: inspection.Server) -> None:
    """Tell what a pooler keeps the gateway from setting, and the role does not have either."""
    report.ok("pooler", "another process works for us than was told at the log-in")
    lacking = server.lacking(settings.commit_timeout_s)
    for name, mend in lacking.items():
        value = server.settings[name]
        report.fail(f"role setting {name}", f"{value} behind a pooler, which keeps none: {mend}")
    if lacking:
        report.warn("pooler", "its connections take what the role has when they open: RECONNECT")
    else:
        report.ok("role settings", "all that the gateway needs behind a pooler")


async def _check_data(report: Report, connection: asyncpg.Connection) -> None:
    """Tell whose data it is, what of the tables is not ours, and what time it is there."""
    generation, ahead_s = await schema.read_identity(connection)
    report.ok("schema", f"up to date, generation {generation}")
    for stranger, meaning in (await inspection.strangers(connection)).items():
        report.warn("schema", f"{stranger} is not ours: {meaning}")
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


async def _check_commit(report: Report, connection: asyncpg.Connection) -> None:
    """Commit something, and tell whether the standbys that are to confirm it do."""
    standbys = await connection.fetchval("SHOW synchronous_standby_names")
    subject = "database setting synchronous_standby_names"
    started = time.monotonic()
    try:
        await inspection.try_commit(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        report.fail("database commit", f"{error}: without it no duplicate can be told")
    except TimeoutError:
        report.fail(
            subject,
            f"{standbys}: none of them confirms a commit within {TIMEOUT_S:.0f} s, every callback "
            "is answered 500",
        )
    else:
        took_ms = 1000 * (time.monotonic() - started)
        confirmed = f"{standbys}: a commit was confirmed in {took_ms:.0f} ms"
        report.ok(subject, confirmed if standbys else "none: no commit waits for a standby")
