"""`check`: is everything well? One line for each thing, and an exit code."""

import asyncio
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import asyncpg
from redis.exceptions import RedisError

import adapters
from app import workspaces
from app.redis_addresses import Finder, Kind, Place, open_redis, read_address
from app.settings import (
    ALLOWLIST_SUFFIX,
    OWNER_SEPARATOR,
    SECRET_SUFFIX,
    Settings,
    SettingsError,
    VendorAccess,
    check_deadlock_timeout,
    read_settings,
    secret_owner,
)
from sinks import schema

TIMEOUT_S = 3.0
# So many workspaces are named in a line.
LISTED_MAX = 10
# What the promise stands on: what was answered survives a crash of the database server.
DURABLE = {"fsync": {"on"}, "synchronous_commit": {"on", "local", "remote_write", "remote_apply"}}


class Report:
    """Prints a line for each thing, and keeps the worst exit code."""

    exit_code = 0

    def ok(self, subject: str, text: str) -> None:
        """Say that a thing is well."""
        print(f"ok       {subject}: {text}", flush=True)

    def warn(self, subject: str, text: str) -> None:
        """Say what an operator should know; the gateway works all the same."""
        print(f"warning  {subject}: {text}", flush=True)

    def fail(self, subject: str, text: str, exit_code: int = 1) -> None:
        """Say that a thing is not well."""
        print(f"FAILED   {subject}: {text}", flush=True)
        self.exit_code = max(self.exit_code, exit_code)


def run() -> int:
    """Check everything; returns 0 where all is well, 1 where not, 2 for a wrong configuration."""
    settings = read_settings()
    report = Report()
    report.ok("settings", "complete, and consistent with each other")
    vendors = adapters.load().keys()
    used = _check_workspaces(report, settings, vendors)
    for vendor in sorted(vendors | settings.vendors.keys()):
        _check_vendor(report, settings, vendor, vendors, used)
    asyncio.run(_check_services(report, settings))
    return report.exit_code


def _check_workspaces(
    report: Report, settings: Settings, vendors: Collection[str]
) -> Collection[str]:
    try:
        apps = workspaces.read(Path(settings.workspaces_file), vendors)
    except workspaces.WorkspacesError as error:
        report.fail("WORKSPACES_FILE", str(error), exit_code=2)
        return ()
    ids = {workspace.id for workspace in apps.values()}
    report.ok("workspaces", f"{len(ids)} with {len(apps)} apps")
    for vendor, access in sorted(settings.vendors.items()):
        _check_owners(report, vendor, access, {a.id for a in apps.values() if a.vendor == vendor})
    return {vendor for vendor, _ in apps}


def _check_owners(
    report: Report, vendor: str, access: VendorAccess, workspace_ids: Collection[str]
) -> None:
    """Report the workspaces that share a secret, and secrets of workspaces that are not there."""
    name = f"secrets of vendor {vendor}"
    shared = sorted(id_ for id_ in workspace_ids if secret_owner(id_) not in access.workspaces)
    if shared and not access.secrets and access.workspaces:
        report.fail(name, f"none for {_listed(shared)}: their callbacks are answered 503")
    elif len(shared) > 1:
        report.warn(
            name,
            f"{_listed(shared)} share {vendor.upper()}{SECRET_SUFFIX}: each customer can write "
            f"into the tables of the others; see {vendor.upper()}{SECRET_SUFFIX}{OWNER_SEPARATOR}…",
        )
    known = {secret_owner(id_) for id_ in workspace_ids}
    if unknown := sorted(access.workspaces.keys() - known):
        report.warn(name, f"no workspace in the file is meant by {_listed(unknown)}")


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more


def _check_vendor(
    report: Report,
    settings: Settings,
    vendor: str,
    vendors: Collection[str],
    used: Collection[str],
) -> None:
    access = settings.vendors.get(vendor, VendorAccess())
    variable = vendor.upper() + SECRET_SUFFIX
    if vendor not in vendors:
        report.warn(f"vendor {vendor}", f"settings for it, but no adapter; see {variable}")
    elif not access.has_secret:
        say = report.fail if vendor in used else report.warn
        say(f"vendor {vendor}", f"no secret in {variable}: every callback is answered 503")
    else:
        addresses = f"{len(access.allowlist)} networks" if access.allowlist else "any address"
        report.ok(
            f"vendor {vendor}",
            f"{len(access.secrets)} secrets, {len(access.workspaces)} workspaces with their own, "
            f"{addresses} ({vendor.upper()}{ALLOWLIST_SUFFIX})",
        )


async def _check_services(report: Report, settings: Settings) -> None:
    try:
        connection = await schema.connect(
            settings.database_url, timeout_s=TIMEOUT_S, command_timeout_s=TIMEOUT_S
        )
    except schema.AddressError as error:
        report.fail("DATABASE_URL", str(error), exit_code=2)
    except schema.NoAnswer as error:
        report.fail("database", str(error))
    else:
        try:
            await _check_database(report, settings, connection)
        except (asyncpg.PostgresError, schema.SchemaError, OSError, TimeoutError) as error:
            report.fail("database", str(error) or type(error).__name__)
        finally:
            await connection.close()
    await _check_redis(report, settings)


async def _check_database(
    report: Report, settings: Settings, connection: asyncpg.Connection
) -> None:
    server = await schema.inspect(connection)
    if server.timescaledb:
        report.ok("database", f"TimescaleDB {server.timescaledb} on PostgreSQL {server.version}")
    else:
        report.warn("database", f"PostgreSQL {server.version} without TimescaleDB: a plain table")
    if server.missing_migrations:
        report.fail("schema", f"{server.missing_migrations[0]} is missing: run migrate")
    else:
        report.ok("schema", f"up to date, generation {await schema.read_generation(connection)}")
    for name, good in DURABLE.items():
        value = server.settings[name]
        say = report.ok if value in good else report.fail
        say(f"database setting {name}", value)
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


def _check_role(report: Report, settings: Settings, server: schema.Server) -> None:
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


async def _check_redis(report: Report, settings: Settings) -> None:
    try:
        address = read_address(settings.redis_url)
    except SettingsError as error:
        report.fail("redis", str(error), exit_code=2)
        return
    try:
        places: list[Place] = []
        for place in (await Finder(address, TIMEOUT_S).find()).values():
            if place not in places:
                places.append(place)
        servers = [await _ask_redis(place, "INFO") for place in places]
        if address.kind is Kind.CLUSTER:
            cluster = await _ask_redis(places[0], "CLUSTER INFO")
            state, covered = cluster["cluster_state"], cluster["cluster_slots_ok"]
            say = report.ok if state == "ok" else report.fail
            say("redis cluster", f"state {state}, {len(places)} primaries, {covered} slots served")
    except (RedisError, OSError, TimeoutError) as error:
        report.fail("redis", f"does not answer: {error}")
        return
    for place, server in zip(places, servers, strict=True):
        _check_redis_server(report, address.kind, place, server)


async def _ask_redis(place: Place, command: str) -> dict[str, Any]:
    async with open_redis(place, TIMEOUT_S) as redis:
        answer: dict[str, Any] = await redis.execute_command(command)  # type: ignore[no-untyped-call]
        return answer


def _check_redis_server(report: Report, kind: Kind, place: Place, server: dict[str, Any]) -> None:
    name = "redis" if kind is Kind.SERVER else f"redis {place['host']}:{place['port']}"
    mode = server["redis_mode"]
    if mode != ("cluster" if kind is Kind.CLUSTER else "standalone"):
        report.fail(name, f"runs in mode {mode}: see REDIS_URL in the README")
    elif server["role"] != "master":
        report.fail(name, "is a replica, which takes no claims")
    else:
        replicas = "" if kind is Kind.SERVER else f", {server['connected_slaves']} replicas"
        report.ok(name, f"Redis {server['redis_version']}{replicas}")
    policy = server.get("maxmemory_policy", "unknown")
    if policy == "noeviction":
        report.ok(f"{name} maxmemory-policy", policy)
    else:
        report.warn(
            f"{name} maxmemory-policy", f"{policy}: evicted claims cost speed, never correctness"
        )
