"""The sabotages: many, of parts that exist."""

import pytest

from bench.faults.faults import FAULTS
from bench.sabotage.catalogue import SABOTAGES
from bench.sabotage.sabotage import Found, patch


def test_sabotages_are_many() -> None:
    """There are sabotages for every verdict, by faults that exist."""
    assert len(SABOTAGES) >= 50
    assert {sabotage.found for sabotage in SABOTAGES.values()} == set(Found)
    assert {fault for sabotage in SABOTAGES.values() for fault in sabotage.faults} <= set(FAULTS)


def test_patch_of_a_missing_part_fails() -> None:
    """A part that was renamed fails its sabotage, rather than leave the gateway whole."""
    with pytest.raises(AttributeError, match="has no renamed"):
        patch(Found, "renamed", None)
