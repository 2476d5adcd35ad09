"""The commands of the bench: each starts its own servers on this machine, and stops them."""

import argparse
import asyncio
import signal
import sys

import uvloop

from app.dev.embedded import EmbeddedError
from bench.capacity import command as capacity
from bench.dashboard import command as dashboard
from bench.failover import command as failover
from bench.faults import command as faults
from bench.micro import command as micro
from bench.neighbours import command as neighbours
from bench.neighbours import flood
from bench.overload import command as overload
from bench.performance import compare, curves
from bench.sabotage import command as sabotage
from bench.testbed.process import BenchError


def main() -> int:
    """Run one command and return its exit code: 0 all targets met, 1 not all, 2 not measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in (
        faults,
        sabotage,
        failover,
        overload,
        neighbours,
        flood,
        compare,
        curves,
        capacity,
        dashboard,
        micro,
    ):
        command.add_command(commands)
    arguments = parser.parse_args()
    # A shell ignores SIGINT for its background jobs. SIGTERM stops all servers as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exit_code: int = runner.run(arguments.run(arguments))
            return exit_code
    except (EmbeddedError, BenchError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: everything is stopped, without a report", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
