"""The faults: each is injected under load, and returns when its cause is gone."""

from bench.faults import gateway_faults, quarantine_faults, server_faults
from bench.faults.fault import Fault

# By name.
FAULTS: dict[str, Fault] = {
    fault.__name__: fault
    for module in (gateway_faults, server_faults, quarantine_faults)
    for fault in module.FAULTS
}
# The faults that need a day without a chunk.
NEW_DAY = frozenset(
    {server_faults.new_chunk.__name__, gateway_faults.gateway_frozen_in_new_chunk.__name__}
)
