"""The sabotages, by name."""

from bench.sabotage import claims, commits, drops, identity, poison, standby, writes
from bench.sabotage.sabotage import Sabotage

SABOTAGES: dict[str, Sabotage] = {
    sabotage.name: sabotage
    for module in (identity, commits, claims, writes, poison, standby, drops)
    for sabotage in module.SABOTAGES
}
