"""`explain`: the outcome of a callback, and its reasons, without sending it."""

import argparse
import asyncio
import logging
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial

from app import normalize
from app.commands.explain.explainer import Explainer
from app.commands.explain.explanation import Explanation, as_text
from app.commands.explain.inputs import lines_of
from app.commands.output import json_line
from app.settings import read_settings

DESCRIPTION = """\
Show what a callback becomes, and why, without sending it. Nothing is stored.

Each argument, or each line of standard input, is one of
  a URL, with or without scheme and host
  a line of an access log (nginx, Apache, HAProxy, load balancers, JSON)
  a curl command, quoted as one argument
  a query, with --vendor

The settings are those of the gateway: WORKSPACES_FILE and the secrets, as for `serve`. With
DATABASE_URL the last line reports whether the event is in the table. Secrets are never shown.
Arguments stay in the shell's history and are visible in `ps`; standard input is neither.
"""
EPILOG = """\
exit code: 0 all become events; 1 one is dropped, rejected or unanswered; 2 one is unreadable
example:   grep usr_1 access.log | python -m app explain
"""
NOTHING = "nothing to explain: pass a URL, a log line or a curl command, or lines on standard input"
NOTHING_EXIT_CODE = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description, parser.epilog = DESCRIPTION, EPILOG
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help="by default: standard input")
    parser.add_argument("--vendor", default="", help="the vendor of a query without a path")
    parser.add_argument("--address", help="check this address of the caller against the allowlist")
    parser.add_argument(
        "--at", type=_time, metavar="TIME", help="the time of arrival (ISO 8601); by default: now"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")


def run(arguments: argparse.Namespace) -> int:
    """Explain every input, and return the worst exit code."""
    settings = read_settings(required=["WORKSPACES_FILE"])
    inputs: Iterable[str | None] = arguments.inputs or lines_of(sys.stdin.buffer)
    if not arguments.inputs and sys.stdin.isatty():
        print("reads standard input, a request on each line; Ctrl-D ends it", file=sys.stderr)
    output = (
        json_line if arguments.json else partial(_block, is_numbered=len(arguments.inputs) != 1)
    )
    with _without_logs(), asyncio.Runner() as runner:
        explainer = Explainer(
            settings, vendor=arguments.vendor, address=arguments.address, at=arguments.at
        )
        runner.run(explainer.start())
        try:
            return _explain_all(explainer, inputs, runner, output)
        finally:
            runner.run(explainer.close())


def _explain_all(
    explainer: Explainer,
    inputs: Iterable[str | None],
    runner: asyncio.Runner,
    output: Callable[[Explanation], str],
) -> int:
    exit_code = number = 0
    # Standard input is read outside the loop: Ctrl-C ends the wait for a line.
    for number, text in enumerate(inputs, 1):
        explanation = runner.run(explainer.explain(number, text))
        print(output(explanation), flush=True)
        exit_code = max(exit_code, explanation.exit_code)
    if not number:
        print(NOTHING, file=sys.stderr)
        return NOTHING_EXIT_CODE
    return exit_code


def _block(explanation: Explanation, *, is_numbered: bool) -> str:
    return as_text(explanation, is_numbered=is_numbered) + "\n"


def _time(text: str) -> datetime:
    moment = normalize.time(text)
    if moment is None:
        raise argparse.ArgumentTypeError("expected ISO 8601, such as 2026-11-20T16:00:00Z")
    return moment.astimezone(UTC)


@contextmanager
def _without_logs() -> Iterator[None]:
    """Keep the gateway's own log lines out of the output: the explanation has their content."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
