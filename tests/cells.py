"""Workspaces files of two cells for tests."""

from collections.abc import Mapping

from bench.testbed.callbacks import workspace_toml

HERE, ELSEWHERE = "eu-1", "eu-2"
# Without a 5xx after which they send again; each with the same app as Adjust.
SILENT = ("appsflyer", "branch", "tenjin")


def apps_toml(cells: Mapping[str, str], *, vendor: str = "adjust") -> str:
    """A workspaces file with the apps of these tokens in these cells, a workspace for each."""
    return "\n".join(
        workspace_toml(f"ws_{token}", token, vendor=vendor, more=f'cell = "{cell}"\n')
        for token, cell in cells.items()
    )
