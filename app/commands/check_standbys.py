"""The part of `check` about high availability: standbys, slots, and the way to the next primary."""

from collections.abc import Sequence

from app.commands.report import Report
from sinks.timescale.standbys import Replication, Slot, Standby

# A standby that is further behind delays a failover, and its own reads.
BEHIND_MAX_S = 30.0
# PostgreSQL's states of a slot whose reader can no longer continue, or soon cannot.
BROKEN_SLOTS = {
    "lost": "its {} must begin anew, with a copy",
    "unreserved": "its {} must soon begin anew, with a copy",
}
SUBJECT = "database standbys"


def check_standbys(report: Report, found: Replication, *, is_direct: bool) -> None:
    """Report on the standbys of a primary.

    `is_direct` where DATABASE_URL has one host, and that is the server itself.
    """
    _check_settings(report, found)
    for slot in found.slots:
        _check_slot(report, slot, is_bounded=found.is_bounded)
    if not found.standbys:
        if not found.needed:
            report.ok(SUBJECT, "none: a failover is not possible")
        return
    if not found.is_readable:
        names = ", ".join(standby.name for standby in found.standbys)
        report.warn(
            SUBJECT,
            f"{names}: the role may not read their states: GRANT pg_monitor TO {found.role};",
        )
    else:
        _check_states(report, found)
    if is_direct:
        report.warn(
            "DATABASE_URL",
            "one host, the server itself: unless its address moves to a new primary, name every "
            "host, or a proxy by role",
        )


def _check_settings(report: Report, found: Replication) -> None:
    """Report settings with which no standby can follow, or be recognised."""
    if found.wal_level == "minimal":
        report.warn("database setting wal_level", "minimal: no standby can follow")
    if found.hot_standby == "off":
        report.warn(
            "database setting hot_standby",
            "off: a standby with this setting refuses connections, as a server that is down does",
        )


def _check_slot(report: Report, slot: Slot, *, is_bounded: bool) -> None:
    """Report a slot without its reader."""
    name = f"database slot {slot.name}"
    reader = "standby" if slot.is_physical else "logical reader"
    away = f"its {reader} is away, {slot.kept_bytes / 1e6:.0f} MB of WAL are kept"
    if slot.wal_status is None:
        report.ok(name, f"no {reader} has used it yet, no WAL is kept")
    elif effect := BROKEN_SLOTS.get(slot.wal_status):
        report.warn(name, f"{slot.wal_status}: {effect.format(reader)}")
    elif is_bounded:
        report.ok(name, away)
    else:
        report.warn(name, f"{away}, without a limit: set max_slot_wal_keep_size, or the disk fills")


def _check_states(report: Report, found: Replication) -> None:
    """Report the standbys that commits wait for, and their distance from the primary."""
    streaming = [standby for standby in found.standbys if standby.is_streaming]
    confirming = [standby for standby in streaming if standby.confirms]
    text = _listed(found.standbys)
    if not found.needed:
        report.warn(SUBJECT, f"{text}: no commit waits for them, a failover may lose events")
    elif confirming and len(confirming) <= found.needed:
        names = " or ".join(standby.name for standby in confirming)
        report.warn(SUBJECT, f"{text}: without {names} every callback is answered 500")
    else:
        report.ok(SUBJECT, text)
    for standby in streaming:
        if standby.behind_s > BEHIND_MAX_S:
            report.warn(SUBJECT, f"{standby.name} is {standby.behind_s:.0f} s behind")


def _listed(standbys: Sequence[Standby]) -> str:
    return ", ".join(f"{each.name} {each.state} {each.sync_state}" for each in standbys)
