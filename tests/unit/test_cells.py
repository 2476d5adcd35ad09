"""Cells: the workspaces file that assigns apps to them, and the maps for proxies."""

import argparse
import json

import pytest

import adapters
from app.commands import cells
from app.commands.selection import REASONS
from app.settings import SettingsError, read_settings
from app.workspaces_file import Apps, WorkspacesError, decode, require_cell

VENDORS = adapters.load()


def apps(*entries: tuple[str, str]) -> Apps:
    """The apps of a file with these app tokens and cells; an empty cell is not written."""
    lines = [
        f"[[workspaces.apps]]\nvendor = 'adjust'\napp_token = '{token}'\n"
        + (f"cell = {json.dumps(cell)}\n" if cell else "")
        for token, cell in entries
    ]
    return decode(f"[[workspaces]]\nid = 'ws'\n{''.join(lines)}".encode(), VENDORS)


def error_of(*entries: tuple[str, str], cell: str = "") -> str:
    """The error of a gateway of a cell about a file."""
    with pytest.raises(WorkspacesError) as raised:
        require_cell(apps(*entries), cell)
    return str(raised.value)


def test_app_has_the_cell_of_the_file() -> None:
    """Each app has the cell that the file names, and none without one."""
    assert {app.app_token: app.cell for app in apps(("a", "eu-1"), ("b", "US_2")).values()} == {
        "a": "eu-1", "b": "US_2",
    }  # fmt: skip
    assert [app.cell for app in apps(("a", "")).values()] == [""]


def test_every_app_needs_a_cell_once_one_has() -> None:
    """A file in which only some apps have a cell is refused, and the first other one is named."""
    wrong = ("a", "eu-1"), ("b", ""), ("c", "")
    assert error_of(*wrong) == error_of(*wrong, cell="eu-1")
    assert error_of(*wrong).endswith(
        "needs a `cell`, as others have one - at `$.workspaces[0].apps[1]`"
    )


def test_every_app_needs_a_cell_once_the_setting_is_there() -> None:
    """With CELL, a file without cells is refused."""
    assert error_of(("a", ""), cell="eu-1").endswith("at `$.workspaces[0].apps[0]`")
    require_cell(apps(("a", "")), "")


def test_setting_is_needed_once_there_are_two_cells() -> None:
    """Without CELL a gateway serves a file of one cell, and refuses one of two."""
    require_cell(apps(("a", "eu-1"), ("b", "eu-1")), "")
    assert "2 cells" in error_of(("a", "eu-1"), ("b", "eu-2"))
    for cell in ("eu-1", "eu-2", "eu-3"):
        require_cell(apps(("a", "eu-1"), ("b", "eu-2")), cell)


@pytest.mark.parametrize("name", ["-a", "a-", "a b", "a.b", "a/b", "é", "a\n", "a" * 64])
def test_cell_has_a_name_that_proxies_take(name: str) -> None:
    """Letters, digits, hyphens and underscores make a name: in the file as in the setting."""
    with pytest.raises(WorkspacesError, match=r"cell"):
        apps(("a", name))
    with pytest.raises(SettingsError, match=r"^CELL: "):
        read_settings({"CELL": name}, required=())


@pytest.mark.parametrize("name", ["a", "eu-1", "EU_2", "7", "a" * 63])
def test_good_name_is_taken(name: str) -> None:
    """A good name is taken in the file and in the setting."""
    assert [app.cell for app in apps(("a", name)).values()] == [name]
    assert read_settings({"CELL": name}, required=()).cell == name


def test_map_for_haproxy_has_a_sorted_line_for_each_app() -> None:
    """Tokens stand in the map as they are decoded; no character but white space is special."""
    found = cells.haproxy_map(apps(("b", "eu-1"), ("a#é%41", "eu-2"), ("B", "eu-1")))
    assert list(found) == ["adjust/B eu-1", "adjust/a#é%41 eu-2", "adjust/b eu-1"]


@pytest.mark.parametrize("space", [" ", "\u00a0", "\u2003"])
def test_token_with_white_space_fits_into_no_map(space: str) -> None:
    """White space would end the key: the token is named."""
    with pytest.raises(WorkspacesError, match=r"of adjust holds white space"):
        list(cells.haproxy_map(apps((f"a{space}b", "eu-1"))))


def test_map_for_nginx_respects_case_where_cells_differ() -> None:
    """Keys of nginx ignore case: tokens alike are one line, or expressions that respect it."""
    found = cells.nginx_map(
        apps(("x.y", "eu-1"), ("X.y", "eu-2"), ("Same", "eu-1"), ("same", "eu-1"), ('"$\\', "eu-2"))
    )
    assert list(found) == [
        '"adjust/%22%24%5C" eu-2;',
        '"adjust/Same" eu-1;',
        r'"~^adjust/X\.y$" eu-2;',
        r'"~^adjust/x\.y$" eu-1;',
    ]


def test_maps_exclude_each_other() -> None:
    """The command prints one map."""
    parser = argparse.ArgumentParser()
    cells.add_arguments(parser)
    assert not parser.parse_args([]).nginx
    assert parser.parse_args(["--nginx"]).nginx


def test_reason_can_be_selected() -> None:
    """`dropped` and `replay` take the reason of callbacks that reached another cell."""
    assert "other_cell" in REASONS
