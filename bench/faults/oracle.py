"""The oracle: it compares the tables with the vendor's ledger, and names every difference."""

from array import array
from collections.abc import Iterator
from datetime import datetime

import asyncpg
import msgspec

from bench.faults.cut import judge_restores
from bench.faults.quarantine import judge_drops
from bench.faults.verdict import Verdict
from bench.testbed.chronicle import Chronicle
from bench.testbed.deliveries import EventGenerator, EventKind, Row
from bench.testbed.ledger import AnswerKind, Ledger

_NEVER = float("inf")
_FETCH_ROWS = 5_000
_ROWS = """
SELECT user_id, workspace_id, vendor, app_token, event_type, occurred_at, os_name, country, adid,
       gps_adid, idfa, properties,
       extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS committed_at
FROM events
"""
# Wrong for every callback of the bench.
_ALWAYS_WRONG = {
    AnswerKind.REFUSED: "answered 3xx or 4xx, outside the contract",
    AnswerKind.OTHER_2XX: "answered with a 2xx outside the contract",
    AnswerKind.OTHER_5XX: "answered with a 5xx outside the contract",
    AnswerKind.NOT_HTTP: "answered with other bytes than HTTP",
}


class _Table:
    """The rows of the database, by event; a million events take 20 MB."""

    def __init__(self, events: int) -> None:
        self.rows = array("L", bytes(8 * events))
        self.wrong = array("b", bytes(events))
        self.unwanted: set[int] = set()
        self.committed_at = array("d", [_NEVER]) * events
        self.strangers = 0


async def judge(
    connection: asyncpg.Connection,
    generator: EventGenerator,
    ledger: Ledger,
    events: int,
    *,
    is_repeated: bool = False,
    chronicle: Chronicle | None = None,
) -> Verdict:
    """Compare ledger and tables, for the events of the generator below `events`.

    `is_repeated` where a proxy in front of the gateways may repeat a request by itself. The
    `chronicle` has the restores and the wrong clocks of the run.
    """
    chronicle = chronicle or Chronicle()
    table = await _read(connection, generator, events)
    verdict = Verdict(rows=sum(table.rows))
    if table.strangers:
        verdict.doubled[-1] = f"{table.strangers} rows of no callback"
    kept, written = _judge_answers(generator, ledger, table, verdict, chronicle)
    for number in range(events):
        rows = table.rows[number]
        if rows > 1:
            verdict.doubled[number] = f"{rows} rows"
        if kept[number] and rows == 0:
            verdict.lost[number] = "answered written or duplicate, without a row"
        elif table.wrong[number]:
            verdict.lost[number] = "its row has another content"
        if written[number] > 1:
            verdict.lied[number] = f"answered written {written[number]} times"
    verdict.lied |= dict.fromkeys(table.unwanted, "to be dropped, with a row")
    judge_restores(ledger, chronicle, table.committed_at, verdict)
    await judge_drops(
        connection, generator, ledger, verdict, is_repeated=is_repeated, chronicle=chronicle
    )
    return verdict


def _judge_answers(
    generator: EventGenerator,
    ledger: Ledger,
    table: _Table,
    verdict: Verdict,
    chronicle: Chronicle,
) -> tuple["array[int]", "array[int]"]:
    """Judge each answer; returns the numbers of `written` or `duplicate`, and of `written`."""
    kept = array("L", bytes(8 * len(table.rows)))
    written = array("L", bytes(8 * len(table.rows)))
    for number, kind, answered_at in ledger:
        if kind in _ALWAYS_WRONG:
            verdict.lied[number] = _ALWAYS_WRONG[kind]
        elif kind is AnswerKind.DROPPED:
            event = generator.event(number)
            if event.row is not None or event.kind is EventKind.MALFORMED:
                verdict.lied[number] = "answered dropped, without a reason"
        elif kind is AnswerKind.MALFORMED:
            if generator.event(number).kind is not EventKind.MALFORMED:
                verdict.lied[number] = "answered malformed, without a reason"
        elif kind in (AnswerKind.WRITTEN, AnswerKind.DUPLICATE):
            if chronicle.is_undone(answered_at, table.committed_at[number]):
                continue
            kept[number] += 1
            written[number] += kind is AnswerKind.WRITTEN
            # A missing row was never committed: its event is lost as well.
            if answered_at < table.committed_at[number] < _NEVER:
                early_s = table.committed_at[number] - answered_at
                verdict.lied[number] = f"answered {kind.value} {early_s:.3f} s before the commit"
    return kept, written


async def _read(connection: asyncpg.Connection, generator: EventGenerator, events: int) -> _Table:
    table = _Table(events)
    async with connection.transaction():
        async for record in connection.cursor(_ROWS, prefetch=_FETCH_ROWS):
            number = _number(record["user_id"])
            if number is None or number >= events:
                table.strangers += 1
                continue
            table.rows[number] += 1
            table.committed_at[number] = min(table.committed_at[number], record["committed_at"])
            expected = generator.event(number).row
            if expected is None:
                table.unwanted.add(number)
            elif any(_differences(record, expected)):
                table.wrong[number] = 1
    return table


def _number(user_id: str | None) -> int | None:
    kind, text = (user_id or "")[:1], (user_id or "")[1:]
    return int(text) if kind == "u" and text.isdecimal() else None


def _differences(record: asyncpg.Record, expected: Row) -> Iterator[str]:
    """Yield the columns that differ from the callback."""
    for column in (
        "vendor",
        "workspace_id",
        "app_token",
        "event_type",
        "os_name",
        "country",
        "adid",
    ):
        if record[column] != getattr(expected, column):
            yield column
    occurred_at: datetime = record["occurred_at"]
    if occurred_at not in expected.occurred_at:
        yield "occurred_at"
    # Sent as unfilled placeholders, or not at all.
    if (record["gps_adid"], record["idfa"]) != (None, None):
        yield "gps_adid or idfa"
    if msgspec.json.decode(record["properties"]) != expected.properties:
        yield "properties"
