"""The callbacks of `data/adjust.jsonl`."""

import json
from pathlib import Path
from typing import Any

VECTORS: list[dict[str, Any]] = [
    json.loads(line)
    for line in (Path(__file__).parent / "data" / "adjust.jsonl").read_text().splitlines()
]
QUERIES: dict[str, str] = {vector["id"]: vector["query"] for vector in VECTORS}
APP = "abc123token"


def app_token(vector_id: str) -> str:
    """An app of the vector's own: they share users and seconds."""
    return f"app-{vector_id}"


def with_app(query: str, token: str) -> str:
    """The query, sent for another app."""
    return query.replace(f"app_token={APP}&", f"app_token={token}&")
