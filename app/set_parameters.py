"""A callback with other values of some parameters, for trials and replays."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from app.event import Callback

V = TypeVar("V")


def set_parameters(callback: Callback, values: Mapping[str, str | None]) -> Callback:
    """Return a callback with other values of some parameters, and without those that are None."""
    body = callback.body
    if body:
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        encoded = {
            name: None if value is None else msgspec.Raw(msgspec.json.encode(value))
            for name, value in values.items()
        }
        body = msgspec.json.encode(_changed(members, encoded))
    query = _changed(callback.query, values)
    if callback.in_body is None:
        return msgspec.structs.replace(callback, query=query)
    # Not parsed from the changed body: of a repeated name the first value counts.
    in_body = _changed(callback.in_body(), values)
    return msgspec.structs.replace(callback, query=query, in_body=lambda: in_body, body=body)


def _changed(members: Mapping[str, V], values: Mapping[str, V | None]) -> Mapping[str, V]:
    changed = {**members, **values}
    return {name: value for name, value in changed.items() if value is not None}
