"""Errors of the database, and the driver's exceptions translated into them."""

from collections.abc import Iterator
from contextlib import contextmanager

from asyncpg.exceptions import (
    InsufficientPrivilegeError,
    InterfaceError,
    InternalClientError,
    PostgresError,
)


class AddressError(Exception):
    """The driver does not understand the address. The message does not quote it: it is secret."""


class DatabaseError(Exception):
    """The database did not do its part. The message is one line."""


class PrivilegeError(DatabaseError):
    """The role lacks a privilege."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise the exceptions of the driver and of the network as DatabaseError.

    Only the first line of a message: in the lines that follow PostgreSQL may show a row.
    """
    try:
        yield
    except (PostgresError, InterfaceError, InternalClientError, OSError) as error:
        kind = PrivilegeError if isinstance(error, InsufficientPrivilegeError) else DatabaseError
        raise kind(str(error).partition("\n")[0] or type(error).__name__) from error
