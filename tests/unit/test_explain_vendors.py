"""Explanations of callbacks of AppsFlyer and Branch, by the names of these vendors."""

import json
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.commands.explain.explainer import Explainer
from app.commands.explain.explanation import Explanation, Verdict
from app.settings import read_settings
from tests.vectors import vectors_of

SECRET = "s3cr3t"  # noqa: S105 - opens nothing
FILE = """
[[workspaces]]
id = "ws_demo"
[[workspaces.apps]]
vendor = "appsflyer"
app_token = "abc123token"
events = { af_purchase = "purchase" }
[[workspaces.apps]]
vendor = "branch"
app_token = "abc123token"
events = { OPEN = "app_open" }
"""
BODIES = {vector["id"]: vector["body"] for vector in vectors_of("appsflyer") + vectors_of("branch")
          if "body" in vector}  # fmt: skip


@pytest.fixture
async def explainer(tmp_path: Path) -> AsyncIterator[Explainer]:
    """An explainer with an app of each vendor."""
    (tmp_path / "workspaces.toml").write_text(FILE)
    environ = {
        "WORKSPACES_FILE": str(tmp_path / "workspaces.toml"),
        "APPSFLYER_CALLBACK_SECRET": SECRET,
        "BRANCH_CALLBACK_SECRET": SECRET,
    }
    settings = read_settings(environ, required=[])
    explainer = Explainer(settings, vendor="", address=None, at=None)
    await explainer.start()
    yield explainer
    await explainer.close()


async def explained(explainer: Explainer, vendor: str, body: str) -> Explanation:
    """The explanation of a POST."""
    url = f"https://h/ingest/{vendor}?secret={SECRET}&app_token=abc123token"
    words = ["curl", "-H", "content-type: application/json", "-d", body, url]
    return await explainer.explain(1, shlex.join(words))


async def test_message_of_appsflyer_is_explained(explainer: Explainer) -> None:
    """Type, time and user have AppsFlyer's names, and no field is reported as not kept."""
    found = await explained(explainer, "appsflyer", BODIES["af-005"])
    assert found.verdict is Verdict.EVENT
    assert found.event == "event_name = af_purchase -> purchase"
    assert found.time == "event_time = 2023-11-03 00:49:04.897 -> 2023-11-03 00:49:04 UTC"
    assert found.user == "customer_user_id = usr_af_1"
    assert found.not_kept == []
    assert {"event_value", "revenue_float"} <= set(found.kept)
    assert "af_order_id" in found.hints[0]
    order = json.loads(BODIES["af-005"]) | {"event_value": '{"af_order_id":"1"}'}
    assert (await explained(explainer, "appsflyer", json.dumps(order))).hints == []


async def test_webhook_of_branch_is_explained(explainer: Explainer) -> None:
    """Type, time, user and identity have Branch's names; members of its objects are kept."""
    found = await explained(explainer, "branch", BODIES["br-001"])
    assert found.event == "name = OPEN -> app_open"
    assert found.time == "timestamp = 1552727083843 -> 2019-03-16 09:04:43 UTC"
    assert found.user == "user_data.aaid = 99c5b45c-40ab-4e63-8c24-000000004853"
    assert set(found.identity) == {"name", "id"}
    assert found.not_kept == []
    assert "user_data.os_version" in found.kept
    without = await explained(explainer, "branch", BODIES["br-007"])
    assert "id is missing" in without.hints[0]


async def test_unmapped_event_has_lines_to_paste(explainer: Explainer) -> None:
    """An unmapped event of either vendor is explained with the table that lacks it."""
    for vendor, name in (("appsflyer", "af-001"), ("branch", "br-005")):
        found = await explained(explainer, vendor, BODIES[name])
        assert found.verdict is Verdict.DROPPED
        assert "add to `events` of app abc123token" in found.hints[-1] + found.hints[0]
