"""The faults: each is injected under load, and returns when its cause is gone."""

from collections.abc import Mapping
from types import MappingProxyType

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
# The faults that need a day without a chunk.
NEW_DAY = frozenset(
    {server_faults.new_chunk.__name__, gateway_faults.gateway_frozen_in_new_chunk.__name__}
)
# The faults during which callbacks occur on many days.
MANY_DAYS = frozenset({clock_faults.wrong_dates.__name__})
# The faults during which callbacks occur now, and as long ago as is accepted.
NOW = frozenset(
    {clock_faults.gateway_clock_ahead.__name__, clock_faults.gateway_clock_behind.__name__}
)
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
