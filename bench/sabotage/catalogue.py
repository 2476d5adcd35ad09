"""The sabotages, by name."""

from bench.sabotage import commits, drops, identity, poison, standby, writes
from bench.sabotage.sabotage import Sabotage

SABOTAGES: dict[str, Sabotage] = {
    sabotage.name: sabotage
    for module in (identity, commits, writes, poison, standby, drops)
    for sabotage in module.SABOTAGES
}
