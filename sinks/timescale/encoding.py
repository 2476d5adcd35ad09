"""An event as a row: the columns of `events`, and PostgreSQL's binary COPY format.

https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
"""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from app.event import MICROSECOND, Event

COLUMNS = (
    "event_id", "occurred_at", "received_at", "workspace_id", "vendor", "app_token", "event_type",
    "user_id", "adid", "idfa", "gps_adid", "os_name", "country", "properties",
)  # fmt: skip
TYPES = ("uuid", "timestamptz", "timestamptz", *["text"] * 10, "jsonb")

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = struct.pack("!h", -1)
# The number of fields, then the three of fixed length, each behind its length.
_FIXED = struct.Struct("!hi16siqiq")
_pack_length = struct.Struct("!i").pack
_NULL = _pack_length(-1)
_JSONB_VERSION = b"\x01"


def encode_rows(events: Sequence[Event]) -> bytes:
    """Return the whole input of one COPY, so that nothing can fail half-way through it.

    Raises ValueError for a text that has no encoding.
    """
    parts = [_HEADER]
    for event in events:
        occurred_at = (event.occurred_at - _POSTGRES_EPOCH) // MICROSECOND
        received_at = (event.received_at - _POSTGRES_EPOCH) // MICROSECOND
        parts.append(_FIXED.pack(len(COLUMNS), 16, event.event_id, 8, occurred_at, 8, received_at))
        for text in _texts(event):
            if text is None:
                parts.append(_NULL)
            else:
                data = text.encode()
                parts.append(_pack_length(len(data)))
                parts.append(data)
        data = msgspec.json.encode(event.properties)
        parts += (_pack_length(len(data) + 1), _JSONB_VERSION, data)
    parts.append(_TRAILER)
    return b"".join(parts)


def as_arrays(events: Sequence[Event]) -> list[list[object]]:
    """Return the same rows as one array for each column, for `unnest`."""
    rows = [
        (
            UUID(bytes=event.event_id),
            event.occurred_at,
            event.received_at,
            *_texts(event),
            msgspec.json.encode(event.properties).decode(),
        )
        for event in events
    ]
    return [list(column) for column in zip(*rows, strict=True)]


def _texts(event: Event) -> tuple[str | None, ...]:
    return (
        event.workspace_id, event.vendor, event.app_token, event.event_type, event.user_id,
        event.adid, event.idfa, event.gps_adid, event.os_name, event.country,
    )  # fmt: skip
