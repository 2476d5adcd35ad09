"""The SQL of a hub as a text: its names, and the map of the workspaces."""

import pytest

from app.commands.hub import HubCell, hub_sql
from app.settings import SettingsError


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "nothing for a hub"),
        (["eu-1", "eu 2"], "cell 'eu 2'"),
        (['eu"; DROP'], "letters, digits"),
        (["eu-1", "eu_1"], "cells eu-1 and eu_1"),
        (["e" * 49], "at most 48 characters"),
    ],
)
def test_names_that_a_hub_cannot_hold_are_refused(names: list[str], words: str) -> None:
    """One line names the cell."""
    with pytest.raises(SettingsError, match=words) as raised:
        hub_sql([HubCell(name, []) for name in names])
    assert "\n" not in str(raised.value)


def test_each_cell_has_variables_in_place_of_its_password() -> None:
    """Addresses and passwords are variables of psql; the longest name fits."""
    sql = hub_sql([HubCell("eu-1", []), HubCell("e" * 48, [])])
    assert sql.count("password :'eu_1_password'") == 1
    assert sql.count(f":'{'e' * 48}_password'") == 1
    code = [line for line in sql.splitlines() if not line.startswith("--")]
    assert not any("password '" in line for line in code)


def test_map_of_the_workspaces_is_quoted() -> None:
    """A workspace in two cells has both; a quote in its name ends no literal."""
    sql = hub_sql([HubCell("a", ["it's", "both"]), HubCell("b", ["both", "both"])])
    assert "WHEN workspace_id IN ('it''s') THEN ARRAY['a']" in sql
    assert "WHEN workspace_id IN ('both') THEN ARRAY['a', 'b']" in sql
    assert "ELSE ARRAY['a', 'b']\n    END;" in sql
    alone = hub_sql([HubCell("a", [])])
    assert "WHEN" not in alone
    assert "CASE" not in alone
