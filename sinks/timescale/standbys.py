"""The standbys of a primary, and the slots that keep its WAL, for `check`."""

import re
from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

_SETTINGS = ("synchronous_standby_names", "max_slot_wal_keep_size", "wal_level", "hot_standby")
# Without the rights of pg_monitor the server hides every column but the name.
_STANDBYS = """
SELECT application_name, state, sync_state,
    extract(epoch FROM coalesce(replay_lag, '0'))::float8 AS behind_s
FROM pg_stat_replication AS sender
WHERE state IS DISTINCT FROM 'backup' AND NOT EXISTS (
    SELECT FROM pg_replication_slots
    WHERE active_pid = sender.pid AND slot_type = 'logical'
)
ORDER BY application_name
"""
_SLOTS = """
SELECT slot_name, slot_type = 'physical', wal_status,
    coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::float8 AS kept_bytes
FROM pg_replication_slots
WHERE NOT active
ORDER BY slot_name
"""
_STREAMING = "streaming"
# A potential one takes the place of a synchronous one that is lost.
_CONFIRMING = ("sync", "quorum", "potential")
# Names without a number in front of them are FIRST 1.
_NEEDED = re.compile(r"\s*(?:FIRST|ANY)?\s*(\d+)\s*\(", re.IGNORECASE)


class Standby(NamedTuple):
    """A standby that is connected; its states are None where the role may not read them."""

    name: str
    state: str | None
    sync_state: str | None
    behind_s: float

    @property
    def is_streaming(self) -> bool:
        """Whether it has caught up with the primary."""
        return self.state == _STREAMING

    @property
    def confirms(self) -> bool:
        """Whether it confirms commits, or can in place of another one."""
        return self.is_streaming and self.sync_state in _CONFIRMING


class Slot(NamedTuple):
    """A replication slot that nobody reads: of a standby, or of logical replication."""

    name: str
    is_physical: bool
    wal_status: str | None  # None of a slot that nobody has used yet
    kept_bytes: float


class Replication(NamedTuple):
    """The standbys of a primary, the slots of those that are away, and the settings."""

    standbys: Sequence[Standby]
    slots: Sequence[Slot]
    is_readable: bool  # the role may read the states of the standbys
    needed: int  # standbys that each commit waits for
    is_bounded: bool  # a slot keeps a limited part of the WAL
    wal_level: str
    hot_standby: str
    role: str  # as SQL writes it


async def replication(connection: asyncpg.Connection) -> Replication:
    """Return the state of the replication of a primary."""
    settings = await connection.fetch(
        "SELECT name, setting FROM pg_settings WHERE name = ANY($1)", _SETTINGS
    )
    values: dict[str, str] = {record["name"]: record["setting"] for record in settings}
    return Replication(
        [Standby(*record) for record in await connection.fetch(_STANDBYS)],
        [Slot(*record) for record in await connection.fetch(_SLOTS)],
        await connection.fetchval("SELECT pg_has_role('pg_read_all_stats', 'USAGE')"),
        needed_standbys(values["synchronous_standby_names"]),
        values["max_slot_wal_keep_size"] != "-1",
        values["wal_level"],
        values["hot_standby"],
        await connection.fetchval("SELECT quote_ident(current_user)"),
    )


def needed_standbys(names: str) -> int:
    """Return the number of standbys that a commit waits for, by `synchronous_standby_names`."""
    if not names.strip():
        return 0
    found = _NEEDED.match(names)
    return int(found[1]) if found else 1
