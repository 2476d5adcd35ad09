"""`faults`: callbacks and faults by one seed, and a verdict on every callback."""

import argparse
from collections.abc import Iterator, Mapping
from pathlib import Path

from bench.faults.faults import FAULTS
from bench.faults.run import Result, run
from bench.faults.schedule import make_schedule
from bench.testbed import documents
from bench.testbed.console import Progress, markdown_table
from bench.testbed.deliveries import SHARES, EventKind
from bench.testbed.ledger import AnswerKind
from bench.testbed.results import Commands

OFFENDERS_MAX = 10
HEADINGS = ("", "", "number", "slowest recovery, s")


def add_command(commands: Commands) -> None:
    """Add `faults` to the commands of the bench."""
    text = "callbacks and faults by one seed, and a verdict on every callback"
    parser = commands.add_parser("faults", help=text, description=text)
    parser.add_argument(
        "--callbacks", type=int, default=1_000_000, help="callbacks to send, not counting repeats"
    )
    parser.add_argument(
        "--faults", type=int, default=len(FAULTS) * 8, help="faults, of all kinds in turn"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed is the same run")
    parser.add_argument("--rate", type=float, default=700, help="callbacks a second at most")
    parser.add_argument("--gateways", type=int, default=2, help="gateway processes")
    parser.add_argument(
        "--only", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT",
        help="of these kinds alone: " + ", ".join(FAULTS),
    )  # fmt: skip
    parser.add_argument(
        "--share", type=_share, action="append", default=[], metavar="KIND=PERMILLE",
        help="of the callbacks; the defaults: "
        + ", ".join(f"{kind.value}={share}" for kind, share in SHARES.items()),
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    documents.add_option(parser)
    parser.set_defaults(run=_command)


def _share(text: str) -> tuple[EventKind, int]:
    kind, _, permille = text.partition("=")
    try:
        return EventKind(kind), int(permille)
    except ValueError:
        known = ", ".join(kind.value for kind in EventKind)
        raise argparse.ArgumentTypeError(f"{text!r}: not KIND=NUMBER with one of {known}") from None


async def _command(arguments: argparse.Namespace) -> int:
    schedule = make_schedule(
        seed=arguments.seed,
        callbacks=arguments.callbacks,
        injections=arguments.faults,
        rate=arguments.rate,
        kinds=arguments.only,
        gateways=arguments.gateways,
        shares=SHARES | dict(arguments.share),
    )
    with Progress(schedule.callbacks, "callbacks") as progress:
        result = await run(schedule, progress, folder=arguments.folder)
    print_result(result)
    documents.write(arguments, "faults", result.machine, table(result))
    return 0 if result.is_clean else 1


def print_result(result: Result) -> None:
    """Print the table of the run, and every broken promise."""
    print(table(result), *_offenders(result), sep="\n")


def table(result: Result) -> str:
    """Return one table: the run, the answers, the faults and the verdict."""
    ledger, tally = result.ledger, result.ledger.tally()
    totals: Mapping[str, object] = {
        "seed": str(result.schedule.seed),
        "minutes": result.duration_s / 60,
        "callbacks": result.schedule.callbacks,
        "sent, with repeats of a callback": ledger.callbacks,
        "sent, with retries": len(ledger),
        "given up after the last retry": len(ledger.given_up),
        "rows": result.verdict.rows,
        "rows in quarantine": result.verdict.dropped_rows,
        "rows that appeared behind the newest one": result.reading.late,
        "seconds behind it, at most": result.reading.behind_s,
    }
    broken = {name: len(events) for name, events in _broken(result).items()}
    return markdown_table(
        HEADINGS,
        [
            *(("run", name, number, "") for name, number in totals.items()),
            *(("answer", kind.value, tally[kind], "") for kind in AnswerKind),
            *(
                ("fault", name, len(times), max(times))
                for name, times in sorted(result.recovery_s.items())
            ),
            *(("verdict", name, number, "") for name, number in broken.items()),
            ("verdict", "stuck", len(result.stuck), ""),
            ("verdict", "missed by a reader that looks back", result.reading.missed, ""),
        ],
    )


def _broken(result: Result) -> Mapping[str, Mapping[int, str]]:
    verdict = result.verdict
    return {
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "lied": verdict.lied,
        "leaked": verdict.leaked,
    }


def _offenders(result: Result) -> Iterator[str]:
    for name, events in _broken(result).items():
        for number, reason in list(events.items())[:OFFENDERS_MAX]:
            yield f"{name}: callback {number}: {reason}"
            for entry in result.ledger.of(number):
                yield f"    {entry.answered_at:.3f} {entry.kind.value}"
    yield from (f"stuck: {place}" for place in result.stuck)
