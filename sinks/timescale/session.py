"""A session with PostgreSQL, direct or through a pooler, and what is in force in it."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import asyncpg
from asyncpg.exceptions import PostgresError, ProtocolViolationError
from asyncpg.pool import PoolConnectionProxy

from sinks.timescale import hosts

# A commit that was answered must survive a crash, and be where the standbys are asked to have it,
# whatever the role or the database says; and the server must be let to say where it is not. Set
# also where it is so already: what is set here does not follow a change of the server's files.
DURABLE = """
SELECT set_config(name, CASE WHEN current_setting(name) = ANY (weaker) THEN needed
    ELSE current_setting(name) END, {is_local})
FROM (VALUES
    ('synchronous_commit', 'on', ARRAY['off', 'local', 'remote_write']),
    ('client_min_messages', 'warning', ARRAY['error'])
) AS wanted (name, needed, weaker)
"""
# Where the server tells that the wait for a standby was cancelled. The text is in its language.
_CANCELLED_WAIT = "SyncRepWaitForLSN"


class NotReplicated(Exception):
    """A commit ended before the standbys had it: whether they ever will is not known."""


class Session(asyncpg.Connection):
    """A connection that knows whether there is a pooler on its way.

    Behind one in transaction mode (PgBouncer's) each transaction may have another connection to
    the server, which other clients use in turn. So nothing is set there for longer than a
    transaction, and none of its statements is prepared under a name. What a write cannot do
    without, or what differs between writes, comes with its transaction; what is the same for all
    of them the role must have, see `role_settings`.
    """

    is_pooled = False
    lock_timeout_ms = "0"
    # Whether a commit's wait for the standbys was cancelled; to be forgotten by who asks.
    is_wait_cancelled = False

    async def wait_for_locks(self, timeout_s: float) -> None:
        """From now on, give up on a lock after so long."""
        self.lock_timeout_ms = milliseconds(timeout_s)
        if not (self.is_pooled or self.is_closed()):
            await self.execute(f"SET lock_timeout = {self.lock_timeout_ms}")

    @property
    def begin(self) -> str:
        """What begins a transaction, in one message."""
        if not self.is_pooled:
            return "BEGIN"
        durable = DURABLE.format(is_local="true")
        return f"BEGIN; {durable}; SET LOCAL lock_timeout = {self.lock_timeout_ms}"


def role_settings(commit_timeout_s: float) -> dict[str, str]:
    """Return the settings that are the same for every connection, in the units of `pg_settings`."""
    # A little earlier than we ourselves: then it is known that nothing was committed.
    timeout_ms = milliseconds(0.9 * commit_timeout_s)
    return {
        "statement_timeout": timeout_ms,
        # The server must notice a gateway that is frozen or gone: its locks hold others up.
        "idle_in_transaction_session_timeout": timeout_ms,
        "tcp_keepalives_idle": "5",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "jit": "off",
    }


async def open_session(database_url: str, settings: Mapping[str, str], timeout_s: float) -> Session:
    """Return a session with the primary in which `settings` are in force, as far as we can.

    They must name `application_name` and `lock_timeout`, in milliseconds. Each host may take
    `timeout_s`. Raises `AddressError` or `hosts.NoAnswer`.
    """

    async def open_at(url: str) -> Session:
        return await _open_direct(url, settings) or await _open_pooled(url, settings)

    session = await hosts.open_primary(database_url, open_at, timeout_s)
    session.lock_timeout_ms = settings["lock_timeout"]
    session.add_log_listener(_hear)
    return session


def _hear(
    session: asyncpg.Connection | PoolConnectionProxy, message: asyncpg.PostgresLogMessage
) -> None:
    """Note a cancelled wait: asyncpg calls this before the one who has committed goes on."""
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
        return None  # so PgBouncer refuses settings; if it is anything else, it will come again
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
    """Whether the process that works for the connection is another than was told at the log-in.

    A pooler tells a number of its own, so that a request to cancel a statement finds its client.
    """
    # Not as a prepared statement, which a pooler may lose. The status tells the number of rows.
    told = connection.get_server_pid()
    return await connection.execute(f"SELECT WHERE pg_backend_pid() = {told}") == "SELECT 0"


@asynccontextmanager
async def transaction(session: Session, end: str = "COMMIT") -> AsyncIterator[None]:
    """Run statements as one transaction, which a refusal takes back: the server's, or an encoder's.

    Unlike asyncpg's own, it sends nothing more after a time-out or a cancel, when it might wait
    for ever for a server that is out of reach: the connection is given up, and the server rolls
    back.
    """
    try:
        await session.execute(session.begin)
        yield
    except (PostgresError, UnicodeEncodeError):
        if not session.is_closed():
            await session.execute("ROLLBACK")
        raise
    await session.execute(end)


def unit(session: Session, *, is_whole: bool) -> AbstractAsyncContextManager[None]:
    """Run statements one by one; as one transaction where they are to be `is_whole`.

    Behind a pooler too, where the settings come with it. Inside of one they are a part of it.
    """
    if (is_whole or session.is_pooled) and not session.is_in_transaction():
        return transaction(session)
    return nullcontext()


@asynccontextmanager
async def patience(session: Session, lock_timeout_s: float, then_s: float) -> AsyncIterator[None]:
    """Wait so long for each lock meanwhile, and `then_s` afterwards."""
    await session.wait_for_locks(lock_timeout_s)
    try:
        yield
    except PostgresError:
        await session.wait_for_locks(then_s)
        raise
    await session.wait_for_locks(then_s)


def milliseconds(seconds: float) -> str:
    """Return a time in the unit of the server's settings."""
    return f"{seconds * 1000:.0f}"
