"""An event as a row: the columns of `events`, and PostgreSQL's binary COPY format.

https://www.postgresql.org/docs/current/sql-copy.html, "Binary Format".
"""

import struct
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from uuid import UUID

import msgspec

from app.event import MICROSECOND, Event
from sinks.timescale.errors import NotEncodable

COLUMNS = (
    "event_id", "occurred_at", "received_at", "workspace_id", "vendor", "app_token", "event_type",
    "user_id", "adid", "idfa", "gps_adid", "os_name", "country", "properties",
)  # fmt: skip
TYPES = ("uuid", "timestamptz", "timestamptz", *["text"] * 10, "jsonb")

_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
_TRAILER = struct.pack("!h", -1)
# The number of fields, then the three of fixed length, each behind its length.
_pack_fixed = struct.Struct("!hi16siqiq").pack
_pack_length = struct.Struct("!i").pack
_NULL = _pack_length(-1)
# The length of a jsonb, then the version of its format.
_pack_jsonb_head = struct.Struct("!ib").pack
_JSONB_VERSION = 1
# Apps, event types, systems and countries: texts that come again and again.
_REPEATED_MAX = 1024


def encode_rows(events: Sequence[Event]) -> bytes:
    """Return the whole input of one COPY, so that nothing can fail half-way through it.

    Raises NotEncodable.
    """
    parts = [_HEADER]
    for row, event in enumerate(events):
        occurred_at = (event.occurred_at - _POSTGRES_EPOCH) // MICROSECOND
        received_at = (event.received_at - _POSTGRES_EPOCH) // MICROSECOND
        parts.append(_pack_fixed(len(COLUMNS), 16, event.event_id, 8, occurred_at, 8, received_at))
        try:
            parts.append(
                _repeated(event.workspace_id, event.vendor, event.app_token, event.event_type)
            )
            for text in (event.user_id, event.adid, event.idfa, event.gps_adid):
                if text is None:
                    parts.append(_NULL)
                else:
                    data = text.encode()
                    parts += (_pack_length(len(data)), data)
            parts.append(_repeated(event.os_name, event.country))
            data = msgspec.json.encode(event.properties)
        except UnicodeEncodeError as error:
            raise NotEncodable(error, row) from None
        parts += (_pack_jsonb_head(len(data) + 1, _JSONB_VERSION), data)
    parts.append(_TRAILER)
    return b"".join(parts)


@lru_cache(_REPEATED_MAX)
def _repeated(*texts: str | None) -> bytes:
    encoded = [None if text is None else text.encode() for text in texts]
    return b"".join(_NULL if data is None else _pack_length(len(data)) + data for data in encoded)


def as_arrays(events: Sequence[Event]) -> list[list[object]]:
    """Return the same rows as one array for each column, for `unnest`; raises NotEncodable."""
    rows: list[tuple[object, ...]] = []
    for event in events:
        try:
            properties = msgspec.json.encode(event.properties).decode()
        except UnicodeEncodeError as error:
            raise NotEncodable(error, len(rows)) from None
        rows.append((
            UUID(bytes=event.event_id), event.occurred_at, event.received_at, event.workspace_id,
            event.vendor, event.app_token, event.event_type, event.user_id, event.adid, event.idfa,
            event.gps_adid, event.os_name, event.country, properties,
        ))  # fmt: skip
    return [list(column) for column in zip(*rows, strict=True)]
