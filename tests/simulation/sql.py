"""The statements of the sink as the modelled server knows them, by the constants of the product.

An unknown statement is an error of the simulation, and never passed over.
"""

import re
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from enum import Enum, auto
from typing import NamedTuple
from uuid import UUID

from sinks.timescale import chunks, schema, search, session, statements
from tests.simulation.database import Row, Server

Rows = list[tuple[object, ...]]
# A text that the server refuses.
POISON = "poison"
CHUNK_INTERVAL = timedelta(days=1)
_POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_COPY_HEAD_BYTES = 19
_MESSAGE = f", {search._MESSAGE}"
_LOCK_TIMEOUT = re.compile(r"SET (?:LOCAL )?lock_timeout = (\d+)")
_DURABLE = [session.DURABLE.format(is_local=is_local) for is_local in ("true", "false")]
_BACKEND_PID = "SELECT WHERE pg_backend_pid() = "
_TIMESCALEDB = "SELECT extversion FROM pg_extension WHERE extname = 'timescaledb'"
_IS_HYPERTABLE = "SELECT EXISTS (SELECT FROM timescaledb_information.hypertables "
_HAS_CHUNK = "SELECT true FROM timescaledb_information.chunks "


class UnknownStatement(Exception):
    """The sink has sent a statement that the model does not know."""


class Write(Enum):
    """The statements that may write."""

    COPY = auto()
    INSERT = auto()
    ENTER_STABLE = auto()
    FIND_ROWS = auto()
    FIND_STABLE = auto()


class Search(NamedTuple):
    """A search for duplicates, and whether a hit writes a message into the WAL."""

    kind: Write
    writes_message: bool


_WRITES = {
    statements._COPY: Search(Write.COPY, False),
    statements._INSERT: Search(Write.INSERT, False),
    statements._ENTER_STABLE: Search(Write.ENTER_STABLE, False),
    search._ROWS: Search(Write.FIND_ROWS, True),
    search._STABLE: Search(Write.FIND_STABLE, True),
    # For a sabotage.
    search._ROWS.replace(_MESSAGE, ""): Search(Write.FIND_ROWS, False),
    search._STABLE.replace(_MESSAGE, ""): Search(Write.FIND_STABLE, False),
}


def write_of(statement: str) -> Search | None:
    """Return the write of a statement; None for one that never writes."""
    return _WRITES.get(statement)


class Settings(NamedTuple):
    """The settings that a message changes; None leaves one as it is."""

    lock_timeout_s: float | None = None
    is_durable: bool = False


def settings_of(message: str) -> Settings | None:
    """Return the settings of a message, with or without a BEGIN; None for another message."""
    found = Settings()
    for part in message.removeprefix("BEGIN; ").split("; "):
        if part in _DURABLE:
            found = found._replace(is_durable=True)
        elif matched := _LOCK_TIMEOUT.fullmatch(part):
            found = found._replace(lock_timeout_s=int(matched[1]) / 1000)
        elif part != "BEGIN":
            return None
    return found


def read(statement: str, arguments: Sequence[object], server: Server, wall_s: float) -> Rows:
    """Return the rows of a statement that never writes; raises UnknownStatement."""
    if statement == schema._IDENTITY:
        started_us = int(server.started_at_s * 1_000_000)
        return [(wall_s, "value", 7, f"{server.timeline:08X}", started_us, 5, 6)]
    if statement.startswith(_BACKEND_PID):
        return [] if server.is_pooled else [()]
    simple: dict[str, Rows] = {
        "SELECT 1": [(1,)],
        "SELECT WHERE pg_is_in_recovery()": [] if server.is_primary else [()],
        "SELECT to_regclass('schema_migrations')": [("schema_migrations",)],
        "SELECT name FROM schema_migrations": [(name,) for name in schema.migrations()],
        _TIMESCALEDB: [("2.19",)] if server.days else [],
    }
    if statement in simple:
        return simple[statement]
    return _read_chunks(statement, arguments, server.days)


def _read_chunks(statement: str, arguments: Sequence[object], days: set[date]) -> Rows:
    starts = [datetime(day.year, day.month, day.day, tzinfo=UTC) for day in sorted(days)]
    ranges: Rows = [(start, start + CHUNK_INTERVAL) for start in starts]
    if statement == chunks._CHUNKS:
        return ranges
    if statement == chunks._CHUNK_OF:
        (moment,) = arguments
        assert isinstance(moment, datetime)
        return [row for row, start in zip(ranges, starts, strict=True)
                if start <= moment < start + CHUNK_INTERVAL]  # fmt: skip
    if statement.startswith(_HAS_CHUNK):  # of today and tomorrow: made at the start
        return [(True,)]
    if statement.startswith(_IS_HYPERTABLE):
        return [(True,)]
    raise UnknownStatement(statement)


def copied_rows(data: bytes) -> Iterator[Row]:
    """Return the rows of a binary COPY."""
    place = _COPY_HEAD_BYTES
    while (fields := struct.unpack_from("!h", data, place)[0]) != -1:
        place += 2
        values: list[bytes | None] = []
        for _ in range(fields):
            (length,) = struct.unpack_from("!i", data, place)
            place += 4
            values.append(None if length < 0 else data[place : place + length])
            place += max(length, 0)
        event_id, occurred_at, received_at, *texts, properties = values
        yield Row._make((
            event_id, _time(occurred_at), _time(received_at),
            *(text if text is None else text.decode() for text in texts),
            (properties or b"")[1:].decode(),
        ))  # fmt: skip


def inserted_rows(arrays: Sequence[object]) -> Iterator[Row]:
    """Return the rows of an INSERT from arrays."""
    columns: list[list[object]] = []
    for array in arrays:
        assert isinstance(array, list)
        columns.append(array)
    for event_id, *rest in zip(*columns, strict=True):
        assert isinstance(event_id, UUID)
        yield Row._make((event_id.bytes, *rest))


def _time(data: bytes | None) -> datetime:
    assert data
    return _POSTGRES_EPOCH + timedelta(microseconds=struct.unpack("!q", data)[0])
