"""The hosts that DATABASE_URL names: the first of them that is a primary will do."""

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

# What the driver is to make of a `target_session_attrs`: it would ask host after host.
ANY_ROLE = SessionAttribute.any
# The next host is tried when the one before has failed, or has not answered for so long.
STAGGER_S = 0.25
CLOSE_TIMEOUT_S = 2.0

# For callers, which do not import the driver.
Connection = asyncpg.Connection
Opened = TypeVar("Opened", bound=Connection)


class NoAnswer(DatabaseError):
    """No host is a primary that lets us in: one line for each in `hosts`, all in the message."""

    def __init__(self, hosts: Sequence[str]) -> None:
        super().__init__("; ".join(hosts))
        self.hosts = hosts


class _IsStandby(Exception):
    """The host answers, but takes no writes."""


class Role(Enum):
    """What a host turns out to be."""

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
    """Return what each of several hosts is, and a line that says so; raises AddressError."""
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
        statement_cache_size=0,  # a pooler may lose what was prepared under a name
        target_session_attrs=ANY_ROLE,
    )


async def open_primary(
    database_url: str, open_at: Callable[[str], Awaitable[Opened]], timeout_s: float
) -> Opened:
    """Return the connection to the first host that turns out to be a primary.

    `open_at` opens one to the only host of an address; it must not leave the choice of a host by
    its role to the driver. Raises AddressError, or NoAnswer where no host will do.
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
            # Not as a prepared statement, which a pooler may lose. The status tells the rows.
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
    """Return what is wrong with a host; raises what is wrong with the address, or with us."""
    named = f"{host.name} " if hosts > 1 else ""
    detail: Exception
    try:
        attempt.result()
    except _IsStandby:
        return f"{host.name} is a standby"
    except ssl.SSLCertVerificationError as error:  # a ValueError too
        return f"{named}shows a certificate that is refused: {error.verify_message}"
    except FileNotFoundError:  # which does not name it
        return f"{named}is not asked: a file of its address is not there (certificate, key, socket)"
    except (OSError, asyncpg.PostgresError) as error:
        detail = error
    except ValueError as error:  # also the driver's InterfaceErrors about the address
        if not str(error).startswith("root certificate file"):  # others may quote the address
            raise AddressError(NOT_UNDERSTOOD) from None
        return f"{named}is not asked: without sslrootcert there must be ~/.postgresql/root.crt"
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
    """Close a connection that nobody uses any more, in good order if that goes quickly."""
    try:
        # Its own time-out does not cover the answer to a cancelled statement.
        async with asyncio.timeout(CLOSE_TIMEOUT_S):
            await connection.close()
    except Exception:  # noqa: BLE001 - whatever it was, nobody uses it any more
        connection.terminate()
