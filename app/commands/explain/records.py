"""The database's records of an explained request: its row, or its place in quarantine."""

from datetime import UTC, datetime

from app.commands.explain.dry_run import Trace
from app.event import Event
from sinks.timescale import hosts, presence
from sinks.timescale.errors import DatabaseError, translated

TIMEOUT_S = 3.0


class Records:
    """A connection to the database, if there is one; after a failure it is not tried again."""

    def __init__(self, database_url: str) -> None:
        self._database_url = database_url
        self._connection: hosts.Connection | None = None

    async def find(self, trace: Trace) -> str:
        """Return a line about the records of a request; empty where nothing is to be found.

        Raises AddressError.
        """
        if not self._database_url or (
            not isinstance(trace.result, Event) and trace.dropped is None
        ):
            return ""
        try:
            if self._connection is None:
                self._connection = await hosts.connect(
                    self._database_url, timeout_s=TIMEOUT_S, command_timeout_s=TIMEOUT_S
                )
            with translated():
                return await _line(self._connection, trace)
        except (DatabaseError, TimeoutError) as error:
            self._database_url = ""
            return f"database: {error or 'does not answer in time'}"

    async def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            await hosts.close(self._connection)


async def _line(connection: hosts.Connection, trace: Trace) -> str:
    if isinstance(trace.result, Event):
        found = await presence.presence_of(connection, trace.result)
        if found.received_at:
            arrived = _utc(found.received_at)
            return f"in the table, arrived {arrived}: the vendor would be told `duplicate`"
        if found.is_known:
            return "not in the table, but its stable ID is: the vendor would be told `duplicate`"
        return "not in the table"
    if trace.dropped is None:
        return ""
    received_at = await presence.drop_received_at(connection, trace.dropped)
    return (
        f"in quarantine, from {_utc(received_at)}"
        if received_at
        else "not in quarantine at present"
    )


def _utc(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
