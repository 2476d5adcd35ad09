"""`check`: is everything well? One line for each thing, and an exit code."""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

import adapters
from app import workspaces_file
from app.claims.addresses import Finder, Kind, Place, open_redis, read_address
from app.commands.check_database import check_database
from app.commands.report import Report
from app.settings import (
    ALLOWLIST_SUFFIX,
    OWNER_SEPARATOR,
    SECRET_SUFFIX,
    Settings,
    SettingsError,
    VendorAccess,
    read_settings,
    secret_owner,
)
from app.version import PYTHON_VERSION, VERSION

TIMEOUT_S = 3.0
# So many workspaces are named in a line.
LISTED_MAX = 10


def run() -> int:
    """Check everything; returns 0 where all is well, 1 where not, 2 for a wrong configuration."""
    report = Report()
    report.ok("version", f"{VERSION}, on Python {PYTHON_VERSION}")
    settings = read_settings()
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
        apps = workspaces_file.read(Path(settings.workspaces_file), vendors)
    except workspaces_file.WorkspacesError as error:
        report.fail("WORKSPACES_FILE", str(error), exit_code=2)
        return ()
    ids = {app.workspace_id for app in apps.values()}
    report.ok("workspaces", f"{len(ids)} with {len(apps)} apps")
    for vendor, access in sorted(settings.vendors.items()):
        _check_owners(
            report, vendor, access, {a.workspace_id for a in apps.values() if a.vendor == vendor}
        )
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
    for owners in _sharing(access):
        # The secret itself is never told.
        report.warn(name, f"{_listed(owners)} have one in common: it opens the apps of each")
    known = {secret_owner(id_) for id_ in workspace_ids}
    if unknown := sorted(access.workspaces.keys() - known):
        report.warn(name, f"no workspace in the file is meant by {_listed(unknown)}")


def _sharing(access: VendorAccess) -> Sequence[Sequence[str]]:
    """Return the owners of each secret that stands in several settings."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    for owner, secrets in {"the vendor": access.secrets, **access.workspaces}.items():
        for secret in secrets:
            owners[secret].add(owner)
    return sorted({tuple(sorted(names)) for names in owners.values() if len(names) > 1})


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
    await check_database(report, settings)
    await _check_redis(report, settings)


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
        report.fail(name, f"runs in mode {mode}: see REDIS_URL in docs/configuration.md")
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
