"""A session with PostgreSQL, direct or through a pooler, with its settings and transactions."""

import socket
from collections.abc import AsyncIterator, Awaitable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import asyncpg
from asyncpg.exceptions import PostgresError, ProtocolViolationError
from asyncpg.pool import PoolConnectionProxy

from sinks.timescale import hosts

# A commit that was answered must survive a crash and be on the synchronous standbys, whatever the
# settings of the role or the database; and the server must report a cancelled wait. Set also where
# the value is right already: a value set here does not follow a change of the server's files.
DURABLE = """
SELECT set_config(name, CASE WHEN current_setting(name) = ANY (weaker) THEN needed
    ELSE current_setting(name) END, {is_local})
FROM (VALUES
    ('synchronous_commit', 'on', ARRAY['off', 'local', 'remote_write']),
    ('client_min_messages', 'warning', ARRAY['error'])
) AS wanted (name, needed, weaker)
"""
# The server's function that reports a cancelled wait. The text of the report is translated.
_CANCELLED_WAIT = "SyncRepWaitForLSN"


class Session(asyncpg.Connection):
    """A connection of asyncpg, direct or through a pooler.

    Behind a pooler in transaction mode (PgBouncer) each transaction may have another connection to
    the server, which other clients use in turn. So nothing is set there for longer than a
    transaction, and no statement is prepared under a name. A setting that a write needs, or that
    differs between writes, comes with its transaction; the others the role must have, see
    `role_settings`.
    """

    is_pooled = False
    lock_timeout_ms = "0"
    # Whether the wait of a commit for the standbys was cancelled. Its reader resets it.
    is_wait_cancelled = False

    async def wait_for_locks(self, timeout_s: float) -> None:
        """Set the time-out of a wait for a lock from now on."""
        self.lock_timeout_ms = milliseconds(timeout_s)
        if not (self.is_pooled or self.is_closed()):
            await self.execute(f"SET lock_timeout = {self.lock_timeout_ms}")

    def copy(self, statement: str, data: bytes) -> Awaitable[str]:
        """Run a `COPY FROM STDIN`, and return its status.

        asyncpg's own `copy_to_table` composes the statement anew for each call.
        """
        # It would take bytes for the name of a file.
        status: Awaitable[str] = self._copy_in(statement, memoryview(data), None)  # type: ignore[attr-defined]
        return status

    def limit_delivery(self, timeout_ms: int) -> None:
        """Set the time within which the server's kernel must have received what is sent.

        By default the kernel would deliver the end of a COPY even minutes after our time-out, or
        after the end of this process, when the network is back.
        """
        connection: socket.socket = self._transport.get_extra_info("socket")  # type: ignore[attr-defined]
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)

    @property
    def begin(self) -> str:
        """The statements that begin a transaction, for one message."""
        if not self.is_pooled:
            return "BEGIN"
        durable = DURABLE.format(is_local="true")
        return f"BEGIN; {durable}; SET LOCAL lock_timeout = {self.lock_timeout_ms}"


def role_settings(commit_timeout_s: float) -> dict[str, str]:
    """Return the settings that are the same for every connection, in the units of `pg_settings`."""
    # Shorter than our own: after the server's time-out it is known that nothing was committed.
    timeout_ms = milliseconds(0.9 * commit_timeout_s)
    return {
        "statement_timeout": timeout_ms,
        # A gateway that is frozen or gone must lose its locks: other writers wait for them.
        "idle_in_transaction_session_timeout": timeout_ms,
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "jit": "off",
    }


async def open_session(database_url: str, settings: Mapping[str, str], timeout_s: float) -> Session:
    """Return a session with the primary; behind a pooler only some of the settings are in force.

    They must have `application_name`, `lock_timeout` and `statement_timeout`. `timeout_s` is for
    each host. Raises AddressError or NoAnswer.
    """

    async def open_at(url: str) -> Session:
        return await _open_direct(url, settings) or await _open_pooled(url, settings)

    session = await hosts.open_primary(database_url, open_at, timeout_s)
    session.lock_timeout_ms = settings["lock_timeout"]
    session.limit_delivery(int(settings["statement_timeout"]))
    session.add_log_listener(_note_cancelled_wait)
    return session


def _note_cancelled_wait(
    session: asyncpg.Connection | PoolConnectionProxy, message: asyncpg.PostgresLogMessage
) -> None:
    """Set the flag of a cancelled wait: asyncpg calls this before the commit's awaiter resumes."""
    is_cancelled = message.server_source_function == _CANCELLED_WAIT
    if is_cancelled and isinstance(session, Session):
        session.is_wait_cancelled = True


async def _open_pooled(url: str, settings: Mapping[str, str]) -> Session:
    session = await asyncpg.connect(
        url,
        connection_class=Session,
        statement_cache_size=0,
        server_settings={"application_name": settings["application_name"]},
        target_session_attrs=hosts.ANY_ROLE,
    )
    session.is_pooled = True
    return session


async def _open_direct(url: str, settings: Mapping[str, str]) -> Session | None:
    """Return a session without a pooler; None where there is one."""
    try:
        session = await asyncpg.connect(
            url,
            connection_class=Session,
            server_settings=dict(settings),
            target_session_attrs=hosts.ANY_ROLE,
        )
    except ProtocolViolationError:
        return None  # PgBouncer refuses settings so; any other cause fails the next attempt too
    try:
        if await leads_through_a_pooler(session):  # which has ignored the settings
            await session.close()
            return None
        await session.execute(DURABLE.format(is_local="false"))
    except BaseException:
        session.terminate()
        raise
    return session


async def leads_through_a_pooler(connection: asyncpg.Connection) -> bool:
    """Whether pg_backend_pid() differs from the process ID in BackendKeyData.

    A pooler sends an ID of its own at the log-in, by which it finds the client of a cancel request.
    """
    # Not prepared, which a pooler may lose. The status has the number of rows.
    pid = connection.get_server_pid()
    return await connection.execute(f"SELECT WHERE pg_backend_pid() = {pid}") == "SELECT 0"


@asynccontextmanager
async def transaction(session: Session, end: str = "COMMIT") -> AsyncIterator[None]:
    """Run statements as one transaction, which a PostgresError rolls back.

    After a time-out or a cancel it sends nothing more, unlike asyncpg's own, which could wait for
    ever for a server out of reach: the connection is given up, and the server rolls back.
    """
    try:
        await session.execute(session.begin)
        yield
    except PostgresError:
        if not session.is_closed():
            await session.execute("ROLLBACK")
        raise
    await session.execute(end)


def unit(session: Session, *, is_whole: bool) -> AbstractAsyncContextManager[None]:
    """Run statements one by one, or as one transaction where `is_whole`.

    Behind a pooler always as one, since the settings come with a transaction. Within a transaction
    they are a part of it.
    """
    if (is_whole or session.is_pooled) and not session.is_in_transaction():
        return transaction(session)
    return nullcontext()


@asynccontextmanager
async def lock_timeout(session: Session, timeout_s: float, then_s: float) -> AsyncIterator[None]:
    """Set the time-out of a wait for a lock, and `then_s` afterwards."""
    await session.wait_for_locks(timeout_s)
    try:
        yield
    except PostgresError:
        await session.wait_for_locks(then_s)
        raise
    await session.wait_for_locks(then_s)


def milliseconds(seconds: float) -> str:
    """Return a time in the unit of the server's settings."""
    return f"{seconds * 1000:.0f}"
