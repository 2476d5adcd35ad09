"""The oracle of quarantine: it compares the table `dropped` with the vendor's sendings."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from math import inf
from typing import NamedTuple
from urllib.parse import unquote_plus, unquote_to_bytes
from uuid import UUID

import asyncpg
import msgspec

from bench.faults.verdict import Verdict
from bench.testbed.callbacks import SECRET
from bench.testbed.chronicle import Chronicle
from bench.testbed.deliveries import EventGenerator, SimulatedEvent
from bench.testbed.drops import numbered
from bench.testbed.ledger import Ledger, Sending
from bench.testbed.rows import Row, Version, differences

_FETCH_ROWS = 1_000
_ROWS = """
SELECT workspace_id, vendor, app_token, reason, subject, method, query, content_type, body, event,
       extract(epoch FROM received_at)::float8 AS received_at,
       extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS committed_at
FROM dropped
"""
_NUMBER = re.compile(rb"sending-(\d{10})")
_CONTENT_TYPE = re.compile(rb"\r\nContent-Type: ([^\r]*)")
_JSON = "application/json"
# The form of a refused event: a number, and the columns by their names.
_EVENT_FORM = 1
_Event = tuple[int, dict[str, object]]


class _Row(NamedTuple):
    """A row: its times, and the first column that differs from the callback; empty without one."""

    received_at: float
    committed_at: float
    difference: str


async def judge_drops(
    connection: asyncpg.Connection,
    generator: EventGenerator,
    ledger: Ledger,
    verdict: Verdict,
    *,
    is_repeated: bool,
    chronicle: Chronicle,
) -> None:
    """Add the broken promises of quarantine to the verdict.

    A sending that a proxy may repeat by itself (`is_repeated`) has a row for each delivery.
    """
    rows = await _read(connection, generator, ledger, verdict)
    verdict.dropped_rows = sum(map(len, rows.values()))
    for number, sending in ledger.sendings.items():
        kept = generator.event(sending.event).kept
        found = rows.get(number, [])
        if kept is None and found:
            verdict.doubled[sending.event] = "a row in quarantine, where it has no place"
        elif len(found) > 1 and not is_repeated:
            verdict.doubled[sending.event] = f"{len(found)} rows in quarantine of one sending"
        elif kept is not None and sending.kind.has_drop:
            _judge_kept(sending, found, verdict, chronicle)
        elif found and found[0].difference:
            verdict.lost[sending.event] = f"its row in quarantine has another {found[0].difference}"


def _judge_kept(
    sending: Sending, found: list[_Row], verdict: Verdict, chronicle: Chronicle
) -> None:
    """Judge a sending that was answered as one in quarantine."""
    if not found:
        if chronicle.is_undone(sending.answered_at, inf):
            return
        verdict.lost[sending.event] = f"answered {sending.kind.value}, without a row in quarantine"
        return
    row = found[0]
    if row.difference:
        verdict.lost[sending.event] = f"its row in quarantine has another {row.difference}"
    elif not chronicle.is_arrival(row.received_at, sending.sent_at, sending.answered_at):
        after_s = row.received_at - sending.sent_at
        verdict.lost[sending.event] = (
            f"its row in quarantine arrived {after_s:.3f} s after its sending"
        )
    if row.committed_at > sending.answered_at:
        early_s = row.committed_at - sending.answered_at
        verdict.lied[sending.event] = f"answered {sending.kind.value} {early_s:.3f} s too early"


async def _read(
    connection: asyncpg.Connection, generator: EventGenerator, ledger: Ledger, verdict: Verdict
) -> dict[int, list[_Row]]:
    """Return the rows by the number of their sending."""
    rows: defaultdict[int, list[_Row]] = defaultdict(list)
    strangers = 0
    async with connection.transaction():
        async for record in connection.cursor(_ROWS, prefetch=_FETCH_ROWS):
            found = _NUMBER.search(record["query"] + record["body"] + (record["event"] or b""))
            number = int(found[1]) if found else 0
            sending = ledger.sendings.get(number)
            if _holds_secret(record):
                verdict.leaked[sending.event if sending else -1] = "a row of quarantine has it"
            if sending is None:
                strangers += 1
                continue
            event = generator.event(sending.event)
            request = numbered(event.deliveries[0].request, number)
            difference = ""
            if event.kept:
                difference = next(_differences(record, request, event, number), "")
            rows[number].append(_Row(record["received_at"], record["committed_at"], difference))
    if strangers:
        verdict.doubled[-2] = f"{strangers} rows in quarantine of no sending"
    return rows


def _holds_secret(record: asyncpg.Record) -> bool:
    texts = (value for value in record.values() if isinstance(value, str))
    held = "\n".join(texts).encode() + record["query"] + record["body"] + (record["event"] or b"")
    return SECRET.encode() in held or SECRET.encode() in unquote_to_bytes(held)


def _differences(
    record: asyncpg.Record, request: bytes, event: SimulatedEvent, number: int
) -> Iterator[str]:
    """Yield the columns that differ from the callback, which is that of this sending."""
    for column in ("reason", "subject", "workspace_id", "app_token"):
        if record[column] != getattr(event.kept, column):
            yield column
    head, _, body = request.partition(b"\r\n\r\n")
    method, target, _ = head.split(b" ", 2)
    if (record["vendor"], record["method"]) != ("adjust", method.decode()):
        yield "vendor or method"
    if event.refused is not None:
        yield from _differences_of_refused(record, event.refused, number)
        return
    content_type = found[1].decode() if (found := _CONTENT_TYPE.search(head)) else ""
    if record["content_type"] != content_type:
        yield "content type"
    if record["query"] != _redacted(target.partition(b"?")[2]):
        yield "query"
    if not _is_body(record["body"], content_type, body):
        yield "body"
    if record["event"] is not None:
        yield "event"


def _differences_of_refused(record: asyncpg.Record, expected: Row, number: int) -> Iterator[str]:
    """Yield the columns that differ from a refused event, which is kept without its bytes."""
    if record["query"] or record["body"] or record["content_type"] or record["event"] is None:
        yield "query, body or event"
        return
    form, event = msgspec.msgpack.decode(record["event"], type=_Event)
    if form != _EVENT_FORM:
        yield "form of the event"
        return
    event_id, received_at = event["event_id"], event["received_at"]
    event["event_id"] = UUID(bytes=event_id) if isinstance(event_id, bytes) else event_id
    sending = f"sending-{number:010}"
    ((occurred_at, properties),) = expected.versions
    sent = Version(occurred_at, {**properties, "sending": sending})
    yield from differences(event, replace(expected, versions=[sent]))
    if event["has_stable_id"] is not expected.has_stable_id:
        yield "has_stable_id of the event"
    if not isinstance(received_at, datetime) or received_at.timestamp() != record["received_at"]:
        yield "received_at of the event"


def _is_body(kept: bytes, content_type: str, sent: bytes) -> bool:
    if content_type != _JSON:
        return kept == _redacted(sent)
    try:
        members = msgspec.json.decode(sent, type=dict[str, str])
    except msgspec.DecodeError:
        return kept == (b"" if SECRET.encode() in sent else sent)
    left = {name: value for name, value in members.items() if not _is_secret(name, value)}
    return msgspec.json.decode(kept, type=dict[str, str]) == left


def _redacted(pairs: bytes) -> bytes:
    """Return a query or form without each pair that has the secret in its name or value."""
    split = ((pair, pair.decode("latin-1").partition("=")) for pair in pairs.split(b"&"))
    return b"&".join(
        pair for pair, (name, _, value) in split
        if not _is_secret(unquote_plus(name), unquote_plus(value))
    )  # fmt: skip


def _is_secret(name: str, value: str) -> bool:
    return name == "secret" or SECRET in value
