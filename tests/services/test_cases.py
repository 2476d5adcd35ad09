"""Sequences of callbacks as real senders make them, each with the rows that they must leave."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from bench.testbed.client import get
from tests.gateways import SECRET, Process, Services, database_of
from tests.services.test_vectors import receipt

CASES: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parents[1] / "data" / "adjust_cases.jsonl").read_text().splitlines()
]


def toml(value: object) -> str:
    """A value as TOML writes it in one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    return json.dumps(value)


def app_table(case: dict[str, Any]) -> str:
    """The table of a case's own app in the workspaces file."""
    entries = {"vendor": "adjust", "app_token": case["id"], "events": {"g3mz3t": "purchase"}}
    lines = (f"{name} = {toml(value)}\n" for name, value in (entries | case["app"]).items())
    return "[[workspaces.apps]]\n" + "".join(lines)


@pytest.fixture(scope="module")
def gateway(
    services: Services, template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """A gateway with an app for each case."""
    folder = tmp_path_factory.mktemp("cases")
    tables = "\n".join(app_table(case) for case in CASES)
    (folder / "workspaces.toml").write_text(f'[[workspaces]]\nid = "ws_test"\n{tables}')
    with (
        database_of(services, template, "cases") as url,
        Process(url, services.redis_url, folder) as process,
    ):
        process.wait_until_ready()
        yield process


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
async def test_case_leaves_its_rows(gateway: Process, case: dict[str, Any]) -> None:
    """Each callback of a case has its outcome; the newest row has the columns that are named."""
    for query, outcome in zip(case["queries"], case["expect"], strict=True):
        target = f"/ingest/adjust?secret={SECRET}&app_token={case['id']}&{query}"
        answer = await get(gateway.port, target)
        assert (answer.status, answer.json) == (200, receipt(outcome))
    connection = await asyncpg.connect(gateway.database_url)
    try:
        of_the_app = "WHERE app_token = $1 ORDER BY received_at DESC, occurred_at DESC"
        rows = await connection.fetch(f"SELECT * FROM events {of_the_app}", case["id"])
        view = await connection.fetchrow(f"SELECT * FROM revenue_events {of_the_app}", case["id"])
    finally:
        await connection.close()
    assert len(rows) == case["rows"]
    for name, value in case.get("columns", {}).items():
        assert rows[0][name] == value
    properties = json.loads(rows[0]["properties"]) if rows else {}
    assert case.get("properties", {}).items() <= properties.items()
    assert not properties.keys() & set(case.get("absent", ()))
    for name, value in case.get("view", {}).items():
        assert view is not None
        found = view[name]
        assert (found == Decimal(value)) if isinstance(found, Decimal) else (found == value)
