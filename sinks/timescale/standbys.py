"""The standbys of a primary, and the slots that keep its WAL, for `check`."""

from collections.abc import Sequence
from typing import NamedTuple

import asyncpg

_SETTINGS = ("synchronous_standby_names", "max_slot_wal_keep_size", "wal_level", "hot_standby")
# Without the rights of pg_monitor the server hides every column but the name.
_STANDBYS = """
SELECT application_name, state, sync_state,
    extract(epoch FROM coalesce(replay_lag, '0'))::float8 AS behind_s
FROM pg_stat_replication
WHERE state IS DISTINCT FROM 'backup'
ORDER BY application_name
"""
_SLOTS = """
SELECT slot_name, wal_status,
    coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::float8 AS kept_bytes
FROM pg_replication_slots
WHERE slot_type = 'physical' AND NOT active
ORDER BY slot_name
"""
_STREAMING = "streaming"
_CONFIRMING = ("sync", "quorum")


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
        """Whether commits wait for it, alone or with others."""
        return self.is_streaming and self.sync_state in _CONFIRMING


class Slot(NamedTuple):
    """A replication slot without a standby."""

    name: str
    wal_status: str | None  # None of a slot that no standby has used yet
    kept_bytes: float


class Replication(NamedTuple):
    """The standbys of a primary, the slots of those that are away, and the settings."""

    standbys: Sequence[Standby]
    slots: Sequence[Slot]
    is_readable: bool  # the role may read the states of the standbys
    is_synchronous: bool  # commits wait for a standby
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
        bool(values["synchronous_standby_names"]),
        values["max_slot_wal_keep_size"] != "-1",
        values["wal_level"],
        values["hot_standby"],
        await connection.fetchval("SELECT quote_ident(current_user)"),
    )
