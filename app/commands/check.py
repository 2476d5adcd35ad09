"""`check`: check settings, workspaces, adapters, database and Redis, a line each."""

import argparse
import asyncio
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path

import adapters
from app import workspaces_file
from app.claims.connection import RedisUnavailable
from app.claims.discovery import Kind
from app.claims.status import ServerStatus, read_status
from app.commands.check_database import check_database
from app.commands.report import Report
from app.event import Retries
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
from app.vendor import Vendor, Vendors
from app.version import PYTHON_VERSION, VERSION

TIMEOUT_S = 3.0
# Workspaces named in one line.
LISTED_MAX = 10
# The time after which a vendor gives up that sends again only after a time-out.
VENDOR_TIMEOUT_S = 2
OUTAGES = {
    Retries.AFTER_5XX: "an event sent while the gateway does not answer is sent again",
    Retries.AFTER_TIMEOUT: (
        "an event sent while the gateway does not answer is lost: it is tried once more, only "
        "after a time-out, and never after an error"
    ),
    Retries.NEVER: (
        "an event sent while the gateway does not answer is lost: the vendor is not known to try "
        "again"
    ),
}


def run(_: argparse.Namespace) -> int:
    """Run all checks; returns 0 if they pass, 1 after a failure, 2 for a wrong setting."""
    report = Report()
    report.ok("version", f"{VERSION}, on Python {PYTHON_VERSION}")
    settings = read_settings()
    report.ok("settings", "complete, and consistent with each other")
    vendors = adapters.load()
    used = _check_workspaces(report, settings, vendors)
    for name in sorted(vendors.keys() | settings.vendors.keys()):
        _check_vendor(report, settings, name, vendors, used)
        if name in used:
            _check_sending(report, settings, name, vendors[name])
    asyncio.run(_check_services(report, settings))
    return report.exit_code


def _check_workspaces(report: Report, settings: Settings, vendors: Vendors) -> Collection[str]:
    try:
        apps = workspaces_file.read(Path(settings.workspaces_file), vendors)
        workspaces_file.require_cell(apps, settings.cell)
    except workspaces_file.WorkspacesError as error:
        report.fail("WORKSPACES_FILE", str(error), exit_code=2)
        return ()
    ids = {app.workspace_id for app in apps.values()}
    report.ok("workspaces", f"{len(ids)} with {len(apps)} apps")
    _check_cell(report, settings.cell, apps)
    for vendor, access in sorted(settings.vendors.items()):
        _check_owners(
            report, vendor, access, {a.workspace_id for a in apps.values() if a.vendor == vendor}
        )
    return {vendor for vendor, _ in apps}


def _check_cell(report: Report, cell: str, apps: workspaces_file.Apps) -> None:
    """Report the apps of this cell, and a setting CELL that no app names."""
    cells = workspaces_file.cells_of(apps)
    if cell in cells:
        own = sum(app.cell == cell for app in apps.values())
        report.ok(
            "cell",
            f"{cell}, with {own} of {len(apps)} apps; callbacks of the others are answered 503, or "
            "kept in quarantine where their vendor does not send them again",
        )
    elif cell:
        report.warn("cell", f"no app lives in {cell} (CELL), but in {_listed(cells)}")
    elif cells:
        report.warn("cell", f"CELL is not set: this gateway has the apps of cell {cells[0]}")


def _check_owners(
    report: Report, vendor: str, access: VendorAccess, workspace_ids: Collection[str]
) -> None:
    """Report workspaces that share a secret, and secrets of unknown workspaces."""
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
        # Without the secret itself.
        report.warn(name, f"{_listed(owners)} have one in common: it is valid for the apps of each")
    known = {secret_owner(id_) for id_ in workspace_ids}
    if unknown := sorted(access.workspaces.keys() - known):
        report.warn(name, f"{_listed(unknown)}: no such workspace in the file")


def _sharing(access: VendorAccess) -> Sequence[Sequence[str]]:
    """Return the owners of each secret that occurs in several settings."""
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
        report.warn(f"vendor {vendor}", f"has settings, but no adapter; see {variable}")
    elif not access.has_secret:
        finding = report.fail if vendor in used else report.ok
        unused = "" if vendor in used else "not used: "
        finding(
            f"vendor {vendor}", f"{unused}no secret in {variable}: every callback is answered 503"
        )
    else:
        addresses = f"{len(access.allowlist)} networks" if access.allowlist else "any address"
        report.ok(
            f"vendor {vendor}",
            f"{len(access.secrets)} secrets, {len(access.workspaces)} workspaces with their own, "
            f"{addresses} ({vendor.upper()}{ALLOWLIST_SUFFIX})",
        )


def _check_sending(report: Report, settings: Settings, name: str, vendor: Vendor) -> None:
    """Report the default of `stable_id`, and the events lost while the gateway does not answer."""
    finding = report.ok if vendor.retries is Retries.AFTER_5XX else report.warn
    finding(f"vendor {name}", OUTAGES[vendor.retries])
    names = (
        entry if isinstance(entry, str) else " with ".join(entry) for entry in vendor.stable_id
    )
    report.ok(
        f"vendor {name}",
        f"where an app lists no stable_id, an event is identified by {' or '.join(names)}",
    )
    if vendor.retries is Retries.AFTER_TIMEOUT and settings.commit_timeout_s > VENDOR_TIMEOUT_S:
        report.warn(
            f"vendor {name}",
            f"gives up after {VENDOR_TIMEOUT_S} s, but COMMIT_TIMEOUT_S is "
            f"{settings.commit_timeout_s:g}: an event whose commit takes longer is sent once more, "
            "and is lost if both commits fail",
        )


async def _check_services(report: Report, settings: Settings) -> None:
    await check_database(report, settings)
    await _check_redis(report, settings)


async def _check_redis(report: Report, settings: Settings) -> None:
    try:
        status = await read_status(settings.redis_url, TIMEOUT_S)
    except SettingsError as error:
        report.fail("redis", str(error), exit_code=2)
        return
    except RedisUnavailable as error:
        report.fail("redis", f"does not answer: {error}")
        return
    if status.cluster is not None:
        state, covered = status.cluster
        finding = report.ok if state == "ok" else report.fail
        finding(
            "redis cluster",
            f"state {state}, {len(status.servers)} primaries, {covered} slots served",
        )
    for server in status.servers:
        _check_redis_server(report, status.kind, server)


def _check_redis_server(report: Report, kind: Kind, server: ServerStatus) -> None:
    name = "redis" if kind is Kind.SERVER else f"redis {server.name}"
    if server.mode != ("cluster" if kind is Kind.CLUSTER else "standalone"):
        report.fail(name, f"runs in mode {server.mode}: see REDIS_URL in docs/configuration.md")
    elif server.role != "master":
        report.fail(name, "is a replica, which takes no claims")
    else:
        replicas = "" if kind is Kind.SERVER else f", {server.replicas} replicas"
        report.ok(name, f"Redis {server.version}{replicas}")
    policy = server.maxmemory_policy
    if policy == "noeviction":
        report.ok(f"{name} maxmemory-policy", policy)
    else:
        report.warn(
            f"{name} maxmemory-policy", f"{policy}: evicted claims cost speed, never correctness"
        )
