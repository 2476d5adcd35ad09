"""`python -m tests.simulation`: histories by their seeds, each repeatable, until one fails."""

import argparse
import itertools
import signal
import sys
import time
from collections.abc import Iterable, Sequence

from bench.testbed import documents
from bench.testbed.console import markdown_table
from bench.testbed.machine import describe_machine
from bench.testbed.process import BenchError
from tests.simulation import history, sabotage
from tests.simulation.history import Result

PROGRESS_S = 30.0
SABOTAGE_SEEDS = 2_000  # only a miss runs all
PROGRAM = "python -m tests.simulation"
RUN_HEADINGS = (
    "histories",
    "seeds",
    "steps",
    "virtual hours",
    "answers",
    "seconds",
    "broken promises",
)
SABOTAGE_HEADINGS = ("sabotage", "broken sentence", "verdict", "histories", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line, and return its exit code: 1 after a broken promise."""
    chosen = _parser().parse_args(arguments)
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    try:
        if chosen.trace:
            result = history.run(chosen.first)
            print_history(result)
            return int(not result.is_sound)
        if chosen.sabotage:
            return _find_sabotages(chosen, interrupts)
        seeds = _seeds(chosen.first, chosen.seeds, chosen.hours)
        return _run(chosen, _until(interrupts, seeds))
    except BenchError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: no history has failed", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGINT, before)


def print_history(result: Result) -> None:
    """Print the trace of a history and the broken promises."""
    for note in result.trace:
        print(f"{note.at_s:9.4f} s  {note.place:8} {note.text}")
    print(f"seed {result.seed}, digest {result.digest}: {len(result.violations)} broken promises")
    for violation in result.violations:
        print(f"  {violation}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description="Histories of two gateways in virtual time: the real code on modelled servers, "
        "with faults at any step. The same seed is the same history.",
    )
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--seeds", type=_positive, default=3_000, help="histories to run")
    parser.add_argument("--hours", type=float, help="in place of --seeds: the time to run")
    parser.add_argument(
        "--trace", action="store_true", help="print the first history, step by step"
    )
    parser.add_argument(
        "--sabotage",
        action="store_true",
        help="break one promise at a time on purpose: the histories must show each",
    )
    documents.add_option(parser)
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _seeds(first: int, number: int, hours: float | None) -> Iterable[int]:
    if hours is None:
        yield from range(first, first + number)
        return
    until = time.monotonic() + hours * 3_600
    for seed in itertools.count(first):
        if time.monotonic() > until:
            return
        yield seed


def _until(interrupts: Sequence[int], seeds: Iterable[int]) -> Iterable[int]:
    """Raise KeyboardInterrupt between two histories: each one ends in good order."""
    for seed in seeds:
        if interrupts:
            raise KeyboardInterrupt
        yield seed


def _run(chosen: argparse.Namespace, seeds: Iterable[int]) -> int:
    """Run histories until the first that breaks a promise; return the exit code."""
    began = shown = time.monotonic()
    print(f"numbers every {PROGRESS_S:g} s; Ctrl-C ends the run", file=sys.stderr)
    histories = steps = answers = 0
    simulated_s = 0.0

    def summary() -> str:
        return (
            f"{histories:,} histories, {steps:,} steps, {simulated_s / 3600:.1f} virtual hours, "
            f"{answers:,} answers in {time.monotonic() - began:.0f} s"
        )

    for seed in seeds:
        result = history.run(seed)
        histories += 1
        steps += result.steps
        answers += result.answers
        simulated_s += result.simulated_s
        if not result.is_sound:
            print_history(result)
            print(f"again: python -m tests.simulation --trace --from {seed}")
            return 1
        if time.monotonic() - shown > PROGRESS_S:
            shown = time.monotonic()
            print(f"{summary()}, seed {seed}", file=sys.stderr)
    print(f"{summary()}: no promise was broken")
    first: int = chosen.first
    row = (
        f"{histories:,}", f"{first} to {first + histories - 1}", f"{steps:,}",
        f"{simulated_s / 3600:.1f}", f"{answers:,}", f"{time.monotonic() - began:.0f}", 0,
    )  # fmt: skip
    _document(chosen, "--seeds", markdown_table(RUN_HEADINGS, [row]))
    return 0


def _find_sabotages(chosen: argparse.Namespace, interrupts: Sequence[int]) -> int:
    """Print the first history that shows each sabotage; return the exit code."""
    rows: list[tuple[object, ...]] = []
    first: int = chosen.first
    for name, broken in sabotage.SABOTAGES.items():
        began = time.monotonic()
        found = sabotage.find(name, _until(interrupts, range(first, first + SABOTAGE_SEEDS)))
        took_s = time.monotonic() - began
        if found is None:
            print(f"{name}: not found in {SABOTAGE_SEEDS:,} histories")
            continue
        print(f"{name}: seed {found.result.seed}, {took_s:.1f} s: {found.result.violations[0]}")
        rows.append((name, broken.sentence, found.verdict, found.histories, took_s))
    missed = len(sabotage.SABOTAGES) - len(rows)
    print(f"{len(rows)} of {len(sabotage.SABOTAGES)} sabotages found")
    if not missed:
        _document(chosen, "--sabotage", markdown_table(SABOTAGE_HEADINGS, rows))
    return int(missed > 0)


def _document(chosen: argparse.Namespace, command: str, table: str) -> None:
    machine = describe_machine("modelled servers")
    documents.write(chosen, command, machine, table, program=PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
