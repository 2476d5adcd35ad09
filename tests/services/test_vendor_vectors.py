"""Real callbacks of AppsFlyer and Branch, each with its one expected outcome, over HTTP."""

import json
from collections.abc import Iterator
from datetime import datetime

import pytest

from bench.testbed.callbacks import workspace_toml
from bench.testbed.client import Answer, exchange, head
from tests.gateways import SECRET, Process, Services, database_of
from tests.services.test_vectors import receipt, row_of
from tests.vectors import APP, Vector, app_token, vectors_of

VENDORS = ("appsflyer", "branch")
VECTORS = {(vendor, vector["id"]): vector for vendor in VENDORS for vector in vectors_of(vendor)}
# The vendor's names of events, in the mapping of each app; no app has a `stable_id`.
EVENTS = {
    "appsflyer": ("app_start", "af_purchase", "install", "loyal_click", "Level Up"),
    "branch": ("OPEN", "PURCHASE", "INSTALL", "WEB_SESSION_START"),
}
NULL_WORDS = ("", "null")


def workspaces() -> str:
    """A workspaces file with an app for each vector."""
    return "\n".join(
        workspace_toml(
            f"ws_{vendor}",
            *(app_token(name) for of_vendor, name in VECTORS if of_vendor == vendor),
            vendor=vendor,
            events={event: f"type of {event}" for event in EVENTS[vendor]},
        )
        for vendor in VENDORS
    )


@pytest.fixture(scope="module")
def server(
    services: Services, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """A gateway with an app for each vector."""
    folder = tmp_path_factory.mktemp("vendors")
    (folder / "workspaces.toml").write_text(workspaces())
    secrets = {f"{vendor.upper()}_CALLBACK_SECRET": SECRET for vendor in VENDORS}
    with (
        database_of(services, template, "vendors") as url,
        Process(url, services.redis_url, folder, **secrets) as process,
    ):
        process.wait_until_ready()
        yield process


async def send(port: int, vendor: str, vector: Vector, token: str) -> Answer:
    """Send a vector for an app."""
    target = f"/ingest/{vendor}?{vector['query'].replace(APP, token)}"
    body = vector.get("body", "").encode()
    headers = vector.get("headers", {}) | ({"Content-Length": str(len(body))} if body else {})
    return await exchange(port, head(vector["method"], target, headers=headers) + body)


@pytest.mark.parametrize(("vendor", "name"), VECTORS, ids=[name for _, name in VECTORS])
async def test_vector_has_its_outcome_and_row(server: Process, vendor: str, name: str) -> None:
    """A callback of the real world has the outcome and the columns that the vector names."""
    vector, token = VECTORS[vendor, name], app_token(name)
    expected = dict(vector["expect"])
    if relative := vector.get("duplicate_of") or vector.get("distinct_from"):
        first = await send(server.port, vendor, VECTORS[vendor, relative], token)
        assert first.json == receipt("written")
    answer = await send(server.port, vendor, vector, token)
    assert answer.status == expected.pop("status")
    if answer.status != 200:
        return
    outcome = expected.pop("outcome")
    assert answer.json == receipt(outcome)
    if outcome == "dropped":
        return
    row = await row_of(server.database_url, token)
    assert row["occurred_at"] == datetime.fromisoformat(expected.pop("occurred_at"))
    assert {column: row[column] for column in expected} == expected
    assert row["vendor"] == vendor
    assert (await send(server.port, vendor, vector, token)).json == receipt("duplicate")


@pytest.mark.parametrize(
    "name", [name for vendor, name in VECTORS if vendor == "appsflyer" and name != "af-013"]
)
async def test_every_field_of_a_message_is_stored(server: Process, name: str) -> None:
    """Each field of AppsFlyer's with a value is in a column, or in `properties` as it was sent."""
    token = app_token(name)
    await send(server.port, "appsflyer", VECTORS["appsflyer", name], token)
    row = await row_of(server.database_url, token)
    stored = {**row["properties"]}
    columns = {str(value).lower() for value in row.values() if isinstance(value, str)}
    body = VECTORS["appsflyer", name]["body"].removeprefix("\ufeff")
    for field, value in json.loads(body).items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
        if text in NULL_WORDS:
            assert field not in stored
        elif field not in ("event_time", "event_time_selected_timezone"):
            assert stored.get(field) == text or text.lower() in columns, field


async def test_reports_of_one_action_are_one_event(server: Process) -> None:
    """The primary report and that of the retargeting are one row."""
    token = app_token("af-001")
    for name in ("af-001", "af-003"):
        await send(server.port, "appsflyer", VECTORS["appsflyer", name], token)
    assert await row_of(server.database_url, token)
