"""The callbacks of `data/`, a file for each vendor."""

import json
from pathlib import Path
from typing import Any

Vector = dict[str, Any]


def vectors_of(vendor: str) -> list[Vector]:
    """The callbacks of a vendor, each with its one expected outcome."""
    lines = (Path(__file__).parent / "data" / f"{vendor}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


VECTORS = vectors_of("adjust")
QUERIES: dict[str, str] = {vector["id"]: vector["query"] for vector in VECTORS}
APP = "abc123token"


def app_token(vector_id: str) -> str:
    """An app of the vector's own: they share users and seconds."""
    return f"app-{vector_id}"


def with_app(query: str, token: str) -> str:
    """The query, sent for another app."""
    return query.replace(f"app_token={APP}&", f"app_token={token}&")
