"""The oracle: the table holds what the vendor was told, no less and no more, or it says why not."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import asyncpg
import msgspec

from bench.faults.ledger import Ledger, Told
from bench.faults.stories import Author, Row

_NEVER = float("inf")
_FETCH_ROWS = 5_000
_ROWS = """
SELECT user_id, workspace_id, vendor, app_token, event_type, occurred_at, os_name, country, adid,
       gps_adid, idfa, properties,
       extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS committed_at
FROM events
"""
# No callback of the bench deserves any of these.
_NEVER_DESERVED = {
    Told.REFUSED: "told 4xx",
    Told.OTHER_2XX: "told a 2xx outside the contract",
    Told.OTHER_5XX: "told a 5xx outside the contract",
    Told.NOT_HTTP: "told something that is not HTTP",
}


@dataclass
class Verdict:
    """What does not hold: for each kind of fault its stories, with a sentence for each."""

    lost: dict[int, str] = field(default_factory=dict)
    doubled: dict[int, str] = field(default_factory=dict)
    lied: dict[int, str] = field(default_factory=dict)
    rows: int = 0

    @property
    def is_clean(self) -> bool:
        """Whether every promise was kept."""
        return not (self.lost or self.doubled or self.lied)


class _Table:
    """What the database holds, by story; a million of them take 20 MB."""

    def __init__(self, stories: int) -> None:
        self.rows = array("L", bytes(8 * stories))
        self.wrong = array("b", bytes(stories))
        self.unwanted: set[int] = set()
        self.committed_at = array("d", [_NEVER]) * stories
        self.strangers = 0


async def judge(
    connection: asyncpg.Connection, author: Author, ledger: Ledger, stories: int
) -> Verdict:
    """Compare ledger and table, for the stories of the author below `stories`."""
    table = await _read(connection, author, stories)
    verdict = Verdict(rows=sum(table.rows))
    if table.strangers:
        verdict.doubled[-1] = f"{table.strangers} rows that belong to no callback"
    told_kept, told_written = _judge_answers(author, ledger, table, verdict)
    for number in range(stories):
        rows = table.rows[number]
        if rows > 1:
            verdict.doubled[number] = f"{rows} rows"
        if told_kept[number] and rows == 0:
            verdict.lost[number] = "told written or duplicate, and there is no row"
        elif table.wrong[number]:
            verdict.lost[number] = "its row has another content"
        if told_written[number] > 1:
            verdict.lied[number] = f"told written {told_written[number]} times"
    verdict.lied |= dict.fromkeys(table.unwanted, "to be dropped, and there is a row")
    return verdict


def _judge_answers(
    author: Author, ledger: Ledger, table: _Table, verdict: Verdict
) -> tuple["array[int]", "array[int]"]:
    """Judge each answer by itself; returns how often each story was told kept, and written."""
    told_kept = array("L", bytes(8 * len(table.rows)))
    told_written = array("L", bytes(8 * len(table.rows)))
    for number, told, answered_at in ledger:
        if told in _NEVER_DESERVED:
            verdict.lied[number] = _NEVER_DESERVED[told]
        elif told is Told.DROPPED:
            if author.write(number).row is not None:
                verdict.lied[number] = "told dropped, and nothing is wrong with it"
        elif told in (Told.WRITTEN, Told.DUPLICATE):
            told_kept[number] += 1
            told_written[number] += told is Told.WRITTEN
            # A row that is not there was never committed: it is lost as well.
            if answered_at < table.committed_at[number] < _NEVER:
                early_s = table.committed_at[number] - answered_at
                verdict.lied[number] = f"told {told.value} {early_s:.3f} s before the commit"
    return told_kept, told_written


async def _read(connection: asyncpg.Connection, author: Author, stories: int) -> _Table:
    table = _Table(stories)
    async with connection.transaction():
        async for record in connection.cursor(_ROWS, prefetch=_FETCH_ROWS):
            number = _number(record["user_id"])
            if number is None or number >= stories:
                table.strangers += 1
                continue
            table.rows[number] += 1
            table.committed_at[number] = min(table.committed_at[number], record["committed_at"])
            expected = author.write(number).row
            if expected is None:
                table.unwanted.add(number)
            elif any(_differences(record, expected)):
                table.wrong[number] = 1
    return table


def _number(user_id: str | None) -> int | None:
    kind, text = (user_id or "")[:1], (user_id or "")[1:]
    return int(text) if kind == "u" and text.isdecimal() else None


def _differences(record: asyncpg.Record, expected: Row) -> Iterator[str]:
    """Yield the columns whose content is not what was sent."""
    for column in ("workspace_id", "app_token", "event_type", "os_name", "country", "adid"):
        if record[column] != getattr(expected, column):
            yield column
    occurred_at: datetime = record["occurred_at"]
    if occurred_at not in expected.occurred_at:
        yield "occurred_at"
    # The bench sends the latter two as placeholders that were not filled in.
    if (record["vendor"], record["gps_adid"], record["idfa"]) != ("adjust", None, None):
        yield "vendor, gps_adid or idfa"
    if msgspec.json.decode(record["properties"]) != expected.properties:
        yield "properties"
