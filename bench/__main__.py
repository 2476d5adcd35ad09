"""The commands of the bench: each starts what it needs, on this machine, and ends it."""

import argparse
import asyncio
import sys

import uvloop

from app.embedded import EmbeddedError
from bench import overload, trial
from bench.gateway import GatewayError


def main() -> int:
    """Run one command and return its exit code: 0 all promises kept, 1 not, 2 not measured."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    trial.add_command(commands)
    overload.add_command(commands)
    arguments = parser.parse_args()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            exit_code: int = runner.run(arguments.run(arguments))
            return exit_code
    except (EmbeddedError, GatewayError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
