"""`failover`: failovers of a database under load, a verdict, and the seconds of each."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.failover.environment import Route
from bench.failover.run import Fault, Result, run
from bench.failover.timeline import Moment
from bench.faults.verdict import offenders, verdict_rows
from bench.testbed import documents
from bench.testbed.console import Progress, markdown_table
from bench.testbed.ledger import AnswerKind
from bench.testbed.results import Commands

# After the failovers with a fence, one of each.
OTHERS = (Fault.CRASHED, Fault.SWITCHED, Fault.LOST)


def add_command(commands: Commands) -> None:
    """Add `failover` to the commands of the bench."""
    text = "failovers of a database under load: a verdict, and where each second went"
    parser = commands.add_parser(
        "failover",
        help=text,
        description=f"{text}. Three PostgreSQL servers under Patroni and etcd, and two gateways. "
        "The machine of the primary is killed, again and again, and its lock released after a "
        "while, as by a fencing device; then PostgreSQL alone is killed, the roles are switched "
        "on purpose, and a machine is killed without a fence.",
    )
    parser.add_argument("--failovers", type=int, default=10, help="machines to kill, with a fence")
    parser.add_argument("--rate", type=float, default=200, help="callbacks a second")
    parser.add_argument(
        "--promote-after", type=float, default=4, metavar="SECONDS",
        help="from the death of a machine to its fence",
    )  # fmt: skip
    parser.add_argument(
        "--route", type=Route, choices=Route, default=Route.HAPROXY,
        metavar="{" + ",".join(route.value for route in Route) + "}",
        help="the way of the gateways: through HAProxy, or with every host in DATABASE_URL",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=1, help="of the callbacks")
    parser.add_argument("--folder", type=Path, help="a new folder, to keep data and logs in")
    documents.add_option(parser)
    parser.set_defaults(run=_command)


async def _command(arguments: argparse.Namespace) -> int:
    faults = [Fault.FENCED] * arguments.failovers + list(OTHERS)
    with Progress(len(faults), "failovers") as progress:
        result = await run(
            progress,
            faults,
            route=arguments.route,
            rate=arguments.rate,
            promote_after_s=arguments.promote_after,
            seed=arguments.seed,
            folder=arguments.folder,
        )
    broken = offenders(result.verdict, result.stuck, result.ledger)
    print(table(result), *broken, *result.late, sep="\n")
    name = "failover" if result.route is Route.HAPROXY else f"failover --route {result.route.value}"
    documents.write(arguments, name, result.machine, table(result))
    return 0 if result.is_clean and not result.late else 1


def table(result: Result) -> str:
    """Return the table of the failovers, and that of the answers and the verdict."""
    moments = [
        moment for moment in Moment if moment is not Moment.ROUTED or result.route is Route.HAPROXY
    ]
    headings = (
        "", "fault", "Redis", *(moment.value for moment in moments),
        "longest gap", "each gateway writes", "standby again",
    )  # fmt: skip
    rows = [
        (
            str(number), failover.fault, failover.redis,
            *(failover.seconds()[moment] for moment in moments),
            failover.gap_s,
            failover.slowest_s,
            failover.whole_at - failover.stopped_at,
        )
        for number, failover in enumerate(result.failovers, 1)
    ]  # fmt: skip
    return markdown_table(headings, rows) + "\n" + markdown_table(("", "", "number"), _sums(result))


def _sums(result: Result) -> Sequence[tuple[str, str, object]]:
    tally, broken = result.ledger.tally(), verdict_rows(result.verdict, result.stuck)
    return [
        ("run", "minutes", result.duration_s / 60),
        ("run", "callbacks, with repeats", result.ledger.callbacks),
        ("run", "sent, with retries", len(result.ledger)),
        ("run", "rows", result.verdict.rows),
        *(("answer", kind.value, tally[kind]) for kind in AnswerKind if tally[kind]),
        *(("verdict", name, number) for name, number in broken.items()),
    ]
