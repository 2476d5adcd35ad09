"""The report of a run: one table, and every broken promise."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from bench.faults.fault import Place
from bench.faults.run import Result
from bench.faults.verdict import offenders, verdict_rows
from bench.testbed import results as files
from bench.testbed.console import markdown_table
from bench.testbed.ledger import AnswerKind

HEADINGS = ("", "", "number", "slowest recovery, s")


class Run(msgspec.Struct, frozen=True):
    """The sizes of a run, in all of its places."""

    seed: int
    callbacks: int
    faults: int


class FaultsResults(files.Results, frozen=True, kw_only=True):
    """The results of a run, as they are written to a file."""

    faults: dict[str, list[float]]  # the seconds of each recovery, by fault
    answers: dict[str, int]
    verdicts: dict[str, int]


def write(results: Sequence[Result], began: datetime, folder: Path) -> Path:
    """Write the results of a run, and return the path of the report."""
    tally = _tally(results)
    first = results[0]
    report = FaultsResults(
        began=began,
        ended=datetime.now(UTC),
        machine=first.machine,
        schedule=Run(
            first.schedule.seed,
            sum(result.schedule.callbacks for result in results),
            sum(result.injections.total() for result in results),
        ),
        faults=_recoveries(results),
        answers={kind.value: tally[kind] for kind in AnswerKind},
        verdicts=dict(_verdicts(results)),
    )
    listed = [f"- {line}" for line in _offenders(results)]
    text = ["# Faults", "", *report.facts(), "", table(results), *listed]
    return files.write(report, "faults", folder, text, [])


def print_result(results: Sequence[Result]) -> None:
    """Print the table of a run, and every broken promise."""
    print(table(results), *_offenders(results), sep="\n")


def table(results: Sequence[Result]) -> str:
    """Return one table: the run, the answers, the faults and the verdict."""
    tally = _tally(results)
    ledgers = [result.ledger for result in results]
    # Rows of a wrong clock are a day behind.
    readings = [result.reading for result in results if result.schedule.place is not Place.DATES]
    totals: Mapping[str, object] = {
        "seed": str(results[0].schedule.seed),
        "minutes": sum(result.duration_s for result in results) / 60,
        "callbacks": sum(result.schedule.callbacks for result in results),
        "sent, with repeats of a callback": sum(ledger.callbacks for ledger in ledgers),
        "sent, with retries": sum(map(len, ledgers)),
        "given up after the last retry": sum(len(ledger.given_up) for ledger in ledgers),
        "sent while nothing was wrong": sum(result.verdict.undisturbed for result in results),
        "answered 5xx of these, or not at all": sum(
            result.verdict.undisturbed_failed for result in results
        ),
        "rows": sum(result.verdict.rows for result in results),
        "rows in quarantine": sum(result.verdict.dropped_rows for result in results),
        "rows that appeared behind the newest one": sum(reading.late for reading in readings),
        "seconds behind it, at most": max((reading.behind_s for reading in readings), default=0.0),
    }
    recoveries = _recoveries(results)
    return markdown_table(
        HEADINGS,
        [
            *(("run", name, number, "") for name, number in totals.items()),
            *(("answer", kind.value, tally[kind], "") for kind in AnswerKind),
            *(
                ("fault", name, len(times), max(times))
                for name, times in sorted(recoveries.items())
            ),
            ("faults", "", sum(map(len, recoveries.values())), ""),
            *(("verdict", name, number, "") for name, number in _verdicts(results).items()),
        ],
    )


def _tally(results: Sequence[Result]) -> Counter[AnswerKind]:
    return sum((result.ledger.tally() for result in results), Counter())


def _recoveries(results: Sequence[Result]) -> dict[str, list[float]]:
    return {name: times for result in results for name, times in result.recovery_s.items()}


def _verdicts(results: Sequence[Result]) -> Counter[str]:
    broken: Counter[str] = Counter()
    for result in results:
        broken.update(verdict_rows(result.verdict, result.stuck))
        broken["missed by a reader that looks back"] += result.reading.missed
    return broken


def _offenders(results: Sequence[Result]) -> Iterator[str]:
    for result in results:
        yield from offenders(result.verdict, result.stuck, result.ledger)
