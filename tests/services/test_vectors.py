"""Real and awkward callbacks, each with its one expected outcome, over HTTP to a real server."""

import json
from datetime import datetime
from typing import Any

import asyncpg
import pytest

from bench.testbed.client import Answer, get
from tests.gateways import Process
from tests.vectors import QUERIES, VECTORS, app_token, with_app


async def send(port: int, vector: dict[str, Any]) -> Answer:
    """Send a vector, after the one that it is a relative of, both to the same app."""
    token = app_token(vector["id"])
    if relative := vector.get("duplicate_of") or vector.get("distinct_from"):
        first = await get(port, f"/ingest/adjust?{with_app(QUERIES[relative], token)}")
        assert first.json == receipt("written")
    return await get(port, f"/ingest/adjust?{with_app(vector['query'], token)}")


def receipt(outcome: str) -> dict[str, int]:
    """The body of a 200."""
    return {"received": 1, "written": 0, "duplicate": 0, "dropped": 0} | {outcome: 1}


@pytest.mark.parametrize("vector", VECTORS, ids=[vector["id"] for vector in VECTORS])
async def test_vector_has_its_outcome_and_row(server: Process, vector: dict[str, Any]) -> None:
    """A callback of the real world has the outcome, and the row, that the vector names."""
    expected = dict(vector["expect"])
    before = await server.metrics()
    answer = await send(server.port, vector)
    assert answer.status == expected.pop("status")
    if "body" in expected:
        assert answer.json == expected.pop("body")
        return
    outcome = expected.pop("outcome")
    assert answer.json == receipt(outcome)
    if "reason" in expected:
        after = await server.metrics()
        (series,) = {
            name
            for name, value in after.items()
            if name.startswith("flokit_callbacks_dropped_total") and value != before.get(name, 0)
        }
        assert f'reason="{expected.pop("reason")}"' in series
    if outcome == "dropped":
        assert not expected
        return
    row = await row_of(server.database_url, app_token(vector["id"]))
    for name, value in expected.pop("properties", {}).items():
        assert row["properties"][name] == value
    if "occurred_at" in expected:
        assert row["occurred_at"] == datetime.fromisoformat(expected.pop("occurred_at"))
    assert {name: row[name] for name in expected} == expected


async def row_of(database_url: str, token: str) -> dict[str, Any]:
    """The only row of an app."""
    connection = await asyncpg.connect(database_url)
    try:
        records = await connection.fetch("SELECT * FROM events WHERE app_token = $1", token)
    finally:
        await connection.close()
    (record,) = records
    return dict(record) | {"properties": json.loads(record["properties"])}
