"""The oracle: it compares the tables with the vendor's ledger, and names every difference.

Of an event with a final answer there is exactly one row, at most one answer is `written`, and
exactly one if no attempt has an unknown outcome: a lost answer may have been the `written` one.
"""

from array import array
from math import inf

import asyncpg
import msgspec

from bench.faults.cut import judge_restores
from bench.faults.quarantine import judge_drops
from bench.faults.verdict import Verdict
from bench.testbed.chronicle import Chronicle
from bench.testbed.deliveries import EventGenerator, EventKind
from bench.testbed.ledger import AnswerKind, Ledger
from bench.testbed.rows import differences, number_in

_FETCH_ROWS = 5_000
_ROWS = """
SELECT events.*, extract(epoch FROM received_at)::float8 AS arrived_at,
       extract(epoch FROM pg_xact_commit_timestamp(events.xmin))::float8 AS committed_at,
       stable_events.occurred_at AS entered_at
FROM events LEFT JOIN stable_events USING (event_id)
"""
_SHARED_IDS = """
SELECT count(*) FROM (SELECT FROM events GROUP BY event_id HAVING count(*) > 1) AS shared
"""
# The next delivery of such an event would be answered `duplicate`.
_ENTERED_ALONE = """
SELECT count(*) FROM stable_events WHERE NOT EXISTS (
    SELECT FROM events
    WHERE events.occurred_at = stable_events.occurred_at
        AND events.event_id = stable_events.event_id
)
"""
# Attempts beside every fault fail at no more moments than this, or this share of the attempts. A
# stall of a busy machine fails many at few moments; a gateway that breaks the contract does so
# throughout.
_FAILED_MOMENTS_MAX, _FAILED_SHARE_MAX = 10, 0.001
_MOMENT_S = 0.1
# Wrong for every callback of the bench.
_ALWAYS_WRONG = {
    AnswerKind.REFUSED: "answered 3xx or 4xx, outside the contract",
    AnswerKind.OTHER_2XX: "answered with a 2xx outside the contract",
    AnswerKind.OTHER_5XX: "answered with a 5xx outside the contract",
    AnswerKind.NOT_HTTP: "answered with other bytes than HTTP",
}


class _Table:
    """The rows of the database, by event; a million events take 30 MB."""

    def __init__(self, events: int) -> None:
        self.rows = array("L", bytes(8 * events))
        self.wrong: dict[int, str] = {}
        self.unwanted: set[int] = set()
        self.arrived_at = array("d", [inf]) * events
        self.committed_at = array("d", [inf]) * events
        self.strangers = 0


class _Answers:
    """The answers of the ledger, by event; a million events take 40 MB."""

    def __init__(self, events: int) -> None:
        self.kept = array("L", bytes(8 * events))  # written or duplicate
        self.written = array("L", bytes(8 * events))
        self.unknown = array("B", bytes(events))
        self.first_sent_at = array("d", [inf]) * events
        # Of the attempt that was answered `written`.
        self.sent_at = array("d", [inf]) * events
        self.answered_at = array("d", [inf]) * events


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

    `is_repeated` where a proxy in front of the gateways may repeat a request by itself: it may
    keep the first answer to itself. The `chronicle` has the restores, the wrong clocks and the
    faults of the run.
    """
    chronicle = chronicle or Chronicle()
    table = await _read(connection, generator, events)
    verdict = Verdict(rows=sum(table.rows))
    answers = _judge_answers(generator, ledger, table, verdict, chronicle)
    for number in range(events):
        _judge_event(number, table, answers, verdict, chronicle, is_repeated=is_repeated)
    verdict.lied |= dict.fromkeys(table.unwanted, "to be dropped, with a row")
    if table.strangers:
        verdict.doubled[-1] = f"{table.strangers} rows of no callback"
    if shared := await connection.fetchval(_SHARED_IDS):
        verdict.doubled[-3] = f"{shared} event IDs with several rows"
    if alone := await connection.fetchval(_ENTERED_ALONE):
        verdict.lost[-4] = f"{alone} stable IDs without their row"
    judge_restores(ledger, chronicle, table.committed_at, verdict)
    _judge_failures(ledger, chronicle, verdict)
    await judge_drops(
        connection, generator, ledger, verdict, is_repeated=is_repeated, chronicle=chronicle
    )
    return verdict


def _judge_event(
    number: int,
    table: _Table,
    answers: _Answers,
    verdict: Verdict,
    chronicle: Chronicle,
    *,
    is_repeated: bool,
) -> None:
    """Judge the row of one event, and the number of its answers `written`."""
    rows, kept, written = table.rows[number], answers.kept[number], answers.written[number]
    if rows > 1:
        verdict.doubled[number] = f"{rows} rows"
    if kept and rows == 0:
        verdict.lost[number] = "answered written or duplicate, without a row"
    elif number in table.wrong:
        verdict.lost[number] = f"its row has another {table.wrong[number]}"
    elif rows and not _has_arrived_in_time(number, table, answers, chronicle):
        verdict.lost[number] = "its row has another received_at"
    if written > 1:
        verdict.lied[number] = f"answered written {written} times"
    elif kept and not (written or answers.unknown[number] or is_repeated):
        verdict.lied[number] = "answered duplicate each time, and never written"


def _has_arrived_in_time(
    number: int, table: _Table, answers: _Answers, chronicle: Chronicle
) -> bool:
    """Whether `received_at` is within the attempt that was answered `written`.

    Without such an answer, it is between the first attempt and the commit. The time of an event
    without any attempt in the ledger is not known.
    """
    if answers.first_sent_at[number] == inf:
        return True
    if answers.written[number]:
        begin, end = answers.sent_at[number], answers.answered_at[number]
    else:
        begin, end = answers.first_sent_at[number], table.committed_at[number]
    return chronicle.is_arrival(table.arrived_at[number], begin, end)


def _judge_answers(
    generator: EventGenerator,
    ledger: Ledger,
    table: _Table,
    verdict: Verdict,
    chronicle: Chronicle,
) -> _Answers:
    """Judge each answer, and return them by event."""
    answers = _Answers(len(table.rows))
    for number, kind, sent_at, answered_at in ledger:
        answers.first_sent_at[number] = min(answers.first_sent_at[number], sent_at)
        answers.unknown[number] |= kind.is_unknown
        if wrong := _wrong(generator, number, kind):
            verdict.lied[number] = wrong
        elif kind.has_row and not chronicle.is_undone(answered_at, table.committed_at[number]):
            answers.kept[number] += 1
            if kind is AnswerKind.WRITTEN:
                answers.written[number] += 1
                answers.sent_at[number], answers.answered_at[number] = sent_at, answered_at
            # A missing row was never committed: its event is lost as well.
            if answered_at < table.committed_at[number] < inf:
                early_s = table.committed_at[number] - answered_at
                verdict.lied[number] = f"answered {kind.value} {early_s:.3f} s before the commit"
    return answers


def _judge_failures(ledger: Ledger, chronicle: Chronicle, verdict: Verdict) -> None:
    """Add the events of failed attempts beside every fault, if these are more than a few."""
    failed: dict[int, str] = {}
    moments: set[int] = set()
    for number, kind, sent_at, answered_at in ledger:
        if kind is AnswerKind.HUNG_UP or chronicle.is_disturbed(sent_at, answered_at):
            continue
        verdict.undisturbed += 1
        if kind.is_failure:
            verdict.undisturbed_failed += 1
            moments.add(int(answered_at / _MOMENT_S))
            failed[number] = f"{kind.value}, without a fault"
    if len(moments) > max(_FAILED_MOMENTS_MAX, _FAILED_SHARE_MAX * verdict.undisturbed):
        verdict.failed = failed


def _wrong(generator: EventGenerator, number: int, kind: AnswerKind) -> str:
    """Return the reason why an event must not have such an answer; empty where it may."""
    if kind in _ALWAYS_WRONG:
        return _ALWAYS_WRONG[kind]
    if kind not in (AnswerKind.DROPPED, AnswerKind.MALFORMED):
        return ""
    event = generator.event(number)
    is_malformed = event.kind is EventKind.MALFORMED
    if kind is AnswerKind.MALFORMED:
        return "" if is_malformed else "answered malformed, without a reason"
    return "answered dropped, without a reason" if event.row is not None or is_malformed else ""


async def _read(connection: asyncpg.Connection, generator: EventGenerator, events: int) -> _Table:
    table = _Table(events)
    async with connection.transaction():
        async for record in connection.cursor(_ROWS, prefetch=_FETCH_ROWS):
            found = dict(record)
            found["properties"] = msgspec.json.decode(found["properties"], type=dict[str, str])
            number = number_in(found["properties"])
            if number is None or number >= events:
                table.strangers += 1
                continue
            table.rows[number] += 1
            table.arrived_at[number] = found["arrived_at"]
            table.committed_at[number] = min(table.committed_at[number], found["committed_at"])
            expected = generator.event(number).row
            if expected is None:
                table.unwanted.add(number)
            elif difference := next(differences(found, expected), ""):
                table.wrong[number] = difference
            elif found["entered_at"] != (found["occurred_at"] if expected.has_stable_id else None):
                table.wrong[number] = "entry in stable_events"
    return table
