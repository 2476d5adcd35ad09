"""The faults: each is injected under load, and returns when its cause is gone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from app.dev.embedded import EmbeddedError
from bench.faults import (
    clock_faults,
    failover_faults,
    gateway_faults,
    operator_faults,
    pooler_faults,
    quarantine_faults,
    recovery_faults,
    server_faults,
    standby_faults,
)
from bench.faults.fault import Fault, Place
from bench.testbed.clocks import find_libfaketime
from bench.testbed.pgbouncer import find_pgbouncer

_FAULTS: Mapping[Place, tuple[Fault, ...]] = {
    Place.SINGLE: (
        *gateway_faults.FAULTS,
        *server_faults.FAULTS,
        *quarantine_faults.FAULTS,
        *operator_faults.FAULTS,
        *pooler_faults.FAULTS,
    ),
    Place.PAIR: (*standby_faults.FAULTS, *failover_faults.FAULTS, *recovery_faults.FAULTS),
    Place.DATES: clock_faults.FAULTS,
}
# By name.
FAULTS: Mapping[str, Fault] = MappingProxyType(
    {fault.__name__: fault for faults in _FAULTS.values() for fault in faults}
)
PLACES: Mapping[str, Place] = MappingProxyType(
    {fault.__name__: place for place, faults in _FAULTS.items() for fault in faults}
)
# The programs that are neither PostgreSQL nor Redis, and the faults that need them.
_PROGRAMS: tuple[tuple[Callable[[], Path], tuple[Fault, ...]], ...] = (
    (find_pgbouncer, pooler_faults.FAULTS),
    (find_libfaketime, clock_faults.CLOCKS),
)
# The faults that need a day without a chunk.
NEW_DAY = frozenset(
    {server_faults.new_chunk.__name__, gateway_faults.gateway_frozen_in_new_chunk.__name__}
)
# The faults during which callbacks occur on many days.
MANY_DAYS = frozenset({clock_faults.wrong_dates.__name__})
# The faults during which callbacks occur now, and as long ago as is accepted.
NOW = frozenset(fault.__name__ for fault in clock_faults.CLOCKS)
# The faults of one database that are over soon.
QUICK = tuple(
    fault.__name__
    for faults in (
        gateway_faults.FAULTS,
        server_faults.FAULTS,
        quarantine_faults.FAULTS,
        operator_faults.QUICK,
        pooler_faults.QUICK,
    )
    for fault in faults
)


def unavailable() -> Mapping[str, str]:
    """Return the faults whose program this machine cannot get, each with the reason."""
    found: dict[str, str] = {}
    for find, faults in _PROGRAMS:
        try:
            find()
        except EmbeddedError as reason:
            found |= {fault.__name__: str(reason) for fault in faults}
    return found
