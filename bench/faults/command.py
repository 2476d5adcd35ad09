"""`faults`: callbacks and faults by one seed, and a verdict on every callback."""

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from app.dev.embedded import EmbeddedError
from bench.faults.faults import FAULTS, QUICK, unavailable
from bench.faults.report import print_result, table, write
from bench.faults.run import Result, run
from bench.faults.schedule import Schedule, make_schedules
from bench.testbed import documents
from bench.testbed.console import Progress
from bench.testbed.deliveries import SHARES, EventKind
from bench.testbed.process import BenchError
from bench.testbed.results import RESULTS, Commands

# The usual form has each fault equally often, the long one the quick ones twice as often.
_CALLBACKS, _EACH, _RATE = 1_000_000, 6, 700.0
_LONG_CALLBACKS, _LONG_FAULTS, _LONG_RATE = 3_000_000, 1_000, 1_000.0


def add_command(commands: Commands) -> None:
    """Add `faults` to the commands of the bench."""
    text = "callbacks and faults by one seed, and a verdict on every callback"
    parser = commands.add_parser("faults", help=text, description=text)
    parser.add_argument(
        "--long", action="store_true",
        help=f"the long form: {_LONG_CALLBACKS:,} callbacks and {_LONG_FAULTS:,} faults",
    )  # fmt: skip
    parser.add_argument(
        "--callbacks", type=int,
        help=f"callbacks to send, not counting repeats (default: {_CALLBACKS:,})",
    )  # fmt: skip
    parser.add_argument(
        "--faults", type=int, help=f"faults, of all kinds in turn (default: {_EACH} of each)"
    )
    parser.add_argument("--seed", type=int, default=1, help="the same seed is the same run")
    parser.add_argument(
        "--rate", type=float,
        help=f"callbacks a second at most (default: {_RATE:g}, long {_LONG_RATE:g})",
    )  # fmt: skip
    parser.add_argument("--gateways", type=int, default=2, help="gateway processes")
    parser.add_argument(
        "--kinds", nargs="+", choices=FAULTS, default=list(FAULTS), metavar="FAULT",
        help="of these kinds alone: " + ", ".join(FAULTS),
    )  # fmt: skip
    parser.add_argument(
        "--share", type=_share, action="append", default=[], metavar="KIND=PERMILLE",
        help="of the callbacks; the defaults: "
        + ", ".join(f"{kind.value}={share}" for kind, share in SHARES.items()),
    )  # fmt: skip
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where reports are written")
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
    began = datetime.now(UTC)
    schedules = _schedules(arguments)
    results: list[Result] = []
    callbacks = sum(schedule.callbacks for schedule in schedules)
    with Progress(callbacks, "callbacks") as progress:
        for schedule in schedules:
            progress.count_from(sum(result.schedule.callbacks for result in results))
            folder = arguments.folder / schedule.place.name.lower() if arguments.folder else None
            try:
                results.append(await run(schedule, progress, folder=folder))
            except (BenchError, EmbeddedError):
                if results:
                    print_result(results)  # of the environments before
                raise
    print_result(results)
    print(f"written: {write(results, began, arguments.results)}")
    documents.write(arguments, "faults", results[0].machine, table(results))
    return 0 if all(result.is_clean for result in results) else 1


def _schedules(arguments: argparse.Namespace) -> Sequence[Schedule]:
    missing = unavailable()
    kinds: list[str] = [kind for kind in arguments.kinds if kind not in missing]
    for kind in arguments.kinds:
        if kind in missing:
            print(f"left out: {kind}: {missing[kind]}")
    if not kinds:
        raise BenchError("no fault is left")
    callbacks, faults, rate = _CALLBACKS, _EACH * len(kinds), _RATE
    if arguments.long:
        callbacks, faults, rate = _LONG_CALLBACKS, _LONG_FAULTS, _LONG_RATE
        kinds = [*kinds, *(kind for kind in kinds if kind in QUICK)]
    return make_schedules(
        seed=arguments.seed,
        callbacks=arguments.callbacks or callbacks,
        injections=arguments.faults or faults,
        rate=arguments.rate or rate,
        kinds=kinds,
        gateways=arguments.gateways,
        shares=SHARES | dict(arguments.share),
    )
