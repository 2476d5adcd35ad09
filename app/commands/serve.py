"""`serve`: run the gateway until SIGTERM or SIGINT."""

import argparse
import asyncio
import logging
import resource

from app import signals
from app.http.connection_limits import CONNECTIONS_MAX, RESERVED_FILES
from app.http.lifecycle import serve
from app.settings import Settings, SettingsError, check_deadlock_timeout, read_settings
from app.telemetry import logs
from sinks.timescale import hosts, inspection
from sinks.timescale.errors import DatabaseError

INSPECT_TIMEOUT_S = 3.0
# With fewer connections than reserved files, connections would close each other.
OPEN_FILES_MIN = 2 * RESERVED_FILES

log = logging.getLogger(__name__)


def run(_: argparse.Namespace) -> int:
    """Serve callbacks until a signal ends the process; returns only by an exception."""
    settings = read_settings()
    logs.configure(settings.log_level)
    _raise_open_files_limit()
    asyncio.run(_check_database(settings))
    serve(settings)
    signals.exit_without_threads()


def _raise_open_files_limit() -> None:
    """Raise the soft limit of open files, one for each connection, as far as the hard limit.

    Raises SettingsError where the hard limit is too low to serve.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS_MAX + RESERVED_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES_MIN:
        raise SettingsError(
            f"open files (ulimit -Hn): {soft}, but at least {OPEN_FILES_MIN} needed"
        )


async def _check_database(settings: Settings) -> None:
    """Check the server's settings, if the database answers; raises SettingsError."""
    try:
        async with hosts.connected(
            settings.database_url,
            timeout_s=INSPECT_TIMEOUT_S,
            command_timeout_s=INSPECT_TIMEOUT_S,
        ) as connection:
            server = await inspection.inspect(connection)
    except DatabaseError as error:
        log.warning("the database does not answer yet", extra={"error": str(error)})
        return
    if lacking := server.lacking(settings.commit_timeout_s):
        log.warning("the role lacks settings behind a pooler", extra={"run": [*lacking.values()]})
    deadlock_timeout_ms = int(server.settings["deadlock_timeout"])
    check_deadlock_timeout(settings.commit_timeout_s, deadlock_timeout_ms / 1000)
