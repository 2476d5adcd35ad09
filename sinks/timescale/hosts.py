"""The hosts of DATABASE_URL: a connection to the first of them that is a primary."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from typing import TypeVar

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from sinks.timescale.addresses import NOT_UNDERSTOOD, Host, hosts_of
from sinks.timescale.errors import AddressError, DatabaseError, translated

# Overrides a `target_session_attrs` of the address: the driver would try host after host.
ANY_ROLE = SessionAttribute.any
# The next host is tried after a failure of the one before, or after so long without its answer.
STAGGER_S = 0.25
CLOSE_TIMEOUT_S = 2.0

# For callers, which do not import the driver.
Connection = asyncpg.Connection
Opened = TypeVar("Opened", bound=Connection)


class NoAnswer(DatabaseError):
    """No host is a primary that accepts us: one line for each in `hosts`, all in the message."""

    def __init__(self, hosts: Sequence[str]) -> None:
        super().__init__("; ".join(hosts))
        self.hosts = hosts


class _IsStandby(Exception):
    """The host answers, but takes no writes."""


class Role(Enum):
    """The role of a host."""

    PRIMARY = "primary"
    STANDBY = "standby"
    UNKNOWN = "does not let us in"


@asynccontextmanager
async def connected(
    database_url: str, *, timeout_s: float, command_timeout_s: float | None = None
) -> AsyncIterator[Connection]:
    """Open a connection for an operator's command, and close it afterwards.

    Raises AddressError, NoAnswer, and DatabaseError for a failure of the command's statements.
    """
    connection = await connect(
        database_url, timeout_s=timeout_s, command_timeout_s=command_timeout_s
    )
    try:
        with translated():
            yield connection
    finally:
        await close(connection)


async def connect(
    database_url: str, *, timeout_s: float, command_timeout_s: float | None = None
) -> Connection:
    """Return a connection for an operator's command; raises AddressError or NoAnswer."""

    async def open_at(url: str) -> Connection:
        return await _open_for_operator(url, command_timeout_s)

    return await open_primary(database_url, open_at, timeout_s)


async def roles(database_url: str, *, timeout_s: float) -> list[tuple[Role, str]]:
    """Return the role of each of several hosts, and a line for `check`; raises AddressError."""
    hosts, timeout_s = hosts_of(database_url, timeout_s)
    if len(hosts) == 1:
        return []
    attempts = [
        asyncio.create_task(_open_one(_open_for_operator, host.url, timeout_s)) for host in hosts
    ]
    try:
        await asyncio.wait(attempts)
        return [
            (Role.PRIMARY, f"{host.name} is a primary")
            if attempt.exception() is None
            else (
                Role.STANDBY if isinstance(attempt.exception(), _IsStandby) else Role.UNKNOWN,
                _failure(attempt, host, len(hosts)),
            )
            for attempt, host in zip(attempts, hosts, strict=True)
        ]
    finally:
        await _give_up(attempts)


async def _open_for_operator(url: str, command_timeout_s: float | None = None) -> Connection:
    return await asyncpg.connect(
        url,
        command_timeout=command_timeout_s,
        statement_cache_size=0,  # a pooler may lose a prepared statement
        target_session_attrs=ANY_ROLE,
    )


async def open_primary(
    database_url: str, open_at: Callable[[str], Awaitable[Opened]], timeout_s: float
) -> Opened:
    """Return a connection to the first host that proves to be a primary.

    `open_at` opens a connection to the only host of an address, of any role: ANY_ROLE. Raises
    AddressError or NoAnswer.
    """
    hosts, timeout_s = hosts_of(database_url, timeout_s)
    waiting = list(hosts)
    failures: dict[Host, str] = {}
    attempts: dict[asyncio.Task[Opened], Host] = {}
    try:
        while waiting or attempts:
            if waiting:
                host = waiting.pop(0)
                attempt = asyncio.create_task(_open_one(open_at, host.url, timeout_s))
                attempts[attempt] = host
            ended, _ = await asyncio.wait(
                attempts,
                timeout=STAGGER_S if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in ended:
                host = attempts.pop(attempt)
                if attempt.exception() is None:
                    return attempt.result()
                failures[host] = _failure(attempt, host, len(hosts))
    finally:
        await _give_up(attempts)
    raise NoAnswer([failures[host] for host in hosts])


async def _open_one(
    open_at: Callable[[str], Awaitable[Opened]], url: str, timeout_s: float
) -> Opened:
    async with asyncio.timeout(timeout_s):
        connection = await open_at(url)
        try:
            # Not prepared, which a pooler may lose. The status has the number of rows.
            if await connection.execute("SELECT WHERE pg_is_in_recovery()") != "SELECT 0":
                raise _IsStandby
        except _IsStandby:
            await close(connection)
            raise
        except BaseException:
            connection.terminate()
            raise
        return connection


def _failure(attempt: asyncio.Task[Opened], host: Host, hosts: int) -> str:
    """Return a line about a failed attempt; raises AddressError, and a fault of our own."""
    named = f"{host.name} " if hosts > 1 else ""
    detail: Exception
    try:
        attempt.result()
    except _IsStandby:
        return f"{host.name} is a standby"
    except ssl.SSLCertVerificationError as error:  # a ValueError too
        return f"{named}shows a certificate that is refused: {error.verify_message}"
    except FileNotFoundError:  # its message does not name the file
        return f"{named}is not tried: a file of its address is not there (certificate, key, socket)"
    except (OSError, asyncpg.PostgresError) as error:
        detail = error
    except ValueError as error:  # also the driver's InterfaceErrors about the address
        if not str(error).startswith("root certificate file"):  # others may quote the address
            raise AddressError(NOT_UNDERSTOOD) from None
        return f"{named}is not tried: without sslrootcert there must be ~/.postgresql/root.crt"
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        detail = error
    return f"{named}does not answer: {str(detail).partition(chr(10))[0] or type(detail).__name__}"


async def _give_up(attempts: Collection[asyncio.Task[Opened]]) -> None:
    for attempt in attempts:
        attempt.cancel()
    for late in await asyncio.gather(*attempts, return_exceptions=True):
        if not isinstance(late, BaseException):
            late.terminate()


async def close(connection: Connection) -> None:
    """Close an unused connection: in good order where that is quick, else at once."""
    try:
        # Its own time-out does not cover the answer to a cancelled statement.
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await connection.close()
    except Exception:  # noqa: BLE001 - whatever it was, the connection is unused
        connection.terminate()
