"""The sabotages, by name."""

from bench.sabotage import commits, drops, identity, writes
from bench.sabotage.sabotage import Sabotage

SABOTAGES: dict[str, Sabotage] = {
    sabotage.name: sabotage
    for module in (identity, commits, writes, drops)
    for sabotage in module.SABOTAGES
}
