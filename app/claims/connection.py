"""A connection to one Redis server, and a single command on one."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from hiredis import pack_command
from redis.asyncio.connection import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

# The arguments of redis-py for a connection: host, port, password and so on.
Endpoint = Mapping[str, object]


class Connection(Protocol):
    """The methods of redis-py's connection that are used here."""

    @property
    def is_connected(self) -> bool:
        """Whether it was opened, and not closed by this side since."""
        ...

    async def connect(self) -> None:
        """Open it, and log in."""
        ...

    async def can_read(self) -> bool:
        """Whether bytes or the end of the stream have arrived."""
        ...

    async def send_packed_command(self, command: Sequence[bytes]) -> None:
        """Send commands that are encoded already."""
        ...

    async def read_response(self) -> object:
        """Return the next reply; an error reply is raised."""
        ...

    async def disconnect(self, nowait: bool = False) -> None:
        """Close it; with `nowait`, do not wait until the transport is closed."""
        ...


# Returns a connection that is not open yet. A simulation hands in connections of its own.
Connect = Callable[[Endpoint], Connection]


# Returns the bytes of one command; the stub of hiredis allows only one word.
encode: Callable[[tuple[str | bytes | int, ...]], bytes] = pack_command  # type: ignore[assignment]


class RedisUnavailable(Exception):
    """A server, or all of several, did not answer a command; the message is one line."""


def make_connection(endpoint: Endpoint) -> Connection:
    """Return a connection that is not open yet, without time limits and retries.

    The limits are the caller's: redis-py would start a task for each command to keep them.
    """
    options: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "retry": Retry(NoBackoff(), 0),
    }
    pool = ConnectionPool(**options | dict(endpoint))
    connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


async def execute(connect: Connect, endpoint: Endpoint, timeout_s: float, *words: str) -> object:
    """Return the reply to one command, on a connection of its own; raises RedisUnavailable."""
    connection = connect(endpoint)
    try:
        async with asyncio.timeout(timeout_s):
            await connection.connect()
            await connection.send_packed_command([encode(words)])
            return await connection.read_response()
    except TimeoutError:
        raise RedisUnavailable(f"no answer within {timeout_s:g} s") from None
    except (RedisError, OSError) as error:
        raise RedisUnavailable(" ".join(str(error).split())) from error
    finally:
        await connection.disconnect(nowait=True)
