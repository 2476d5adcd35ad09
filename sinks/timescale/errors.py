"""Errors of the database: the cause of a failed write, and one exception for the commands."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, auto
from typing import NamedTuple

from asyncpg.exceptions import (
    DataError,
    InsufficientPrivilegeError,
    InterfaceError,
    InternalClientError,
    PostgresError,
)

from app.event import Event

_LINE = re.compile(r"COPY events, line ([0-9]+)")


class AddressError(Exception):
    """The driver does not understand the address. The message does not quote it: it is secret."""


class DatabaseError(Exception):
    """A statement of a command failed, or its connection did. The message is one line."""


class PrivilegeError(DatabaseError):
    """The role lacks a privilege."""


class NotReplicated(Exception):
    """The wait for a standby was cancelled after a commit: its replication is unknown."""


class NotEncodable(DataError):
    """A text of a row has no encoding. The server would refuse the row for the same reason."""

    def __init__(self, error: UnicodeEncodeError, row: int) -> None:
        super().__init__(error.reason)
        self.row = row


class RowRefused(PostgresError):
    """The server refused a COPY for the data of one event."""

    def __init__(self, error: PostgresError, event: Event) -> None:
        super().__init__(str(error))
        self.event = event


class RowSwallowed(PostgresError):
    """The server accepted a row and did not store it: a foreign trigger left it out."""


class Cause(Enum):
    """The cause of a failed write."""

    ROW = auto()  # the data of a row
    DUPLICATE = auto()  # a row with the key of another
    LOCKED = auto()  # a row or a chunk of another transaction
    SWALLOWED = auto()  # a row that the server did not store
    DEADLOCK = auto()
    OTHER = auto()  # the schema, the server, the connection


# The write may succeed for the other rows.
BLAMES_ROWS = frozenset((Cause.ROW, Cause.DUPLICATE, Cause.LOCKED, Cause.SWALLOWED))
_BY_STATE = {"23505": Cause.DUPLICATE, "54000": Cause.ROW, "55P03": Cause.LOCKED,
             "40P01": Cause.DEADLOCK}  # fmt: skip
_BY_CLASS = {"22": Cause.ROW, "23": Cause.ROW}


class Blame(NamedTuple):
    """The cause of a failed write, and the row at fault where the server names it."""

    cause: Cause
    row: int | None = None  # its place among those sent, from 0


def classify(error: PostgresError) -> Blame:
    """Return the cause of a failed write."""
    if isinstance(error, NotEncodable):
        return Blame(Cause.ROW, error.row)
    if isinstance(error, RowRefused):
        return Blame(Cause.ROW)
    if isinstance(error, RowSwallowed):
        return Blame(Cause.SWALLOWED)
    state = error.sqlstate or ""
    cause = _BY_STATE.get(state) or _BY_CLASS.get(state[:2], Cause.OTHER)
    line = _LINE.match(error.context or "") if cause is Cause.ROW else None
    return Blame(cause, int(line[1]) - 1 if line else None)


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
