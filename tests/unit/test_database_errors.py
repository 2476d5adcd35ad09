"""The cause of a failed write, and the one exception of the commands."""

import asyncpg
import pytest

from sinks.timescale.encoding import as_arrays, encode_rows
from sinks.timescale.errors import (
    Blame,
    Cause,
    DatabaseError,
    NotEncodable,
    PrivilegeError,
    RowRefused,
    RowSwallowed,
    classify,
    translated,
)
from tests.events import event, events

CAUSES = {
    "22021": Cause.ROW,  # character_not_in_repertoire
    "22P05": Cause.ROW,  # untranslatable_character
    "23502": Cause.ROW,  # not_null_violation
    "23514": Cause.ROW,  # check_violation
    "54000": Cause.ROW,  # program_limit_exceeded: an index row that is too long
    "23505": Cause.DUPLICATE,
    "55P03": Cause.LOCKED,
    "40P01": Cause.DEADLOCK,
    "08006": Cause.OTHER,  # connection_failure
    "40001": Cause.OTHER,  # serialization_failure
    "42P01": Cause.OTHER,  # undefined_table
    "53100": Cause.OTHER,  # disk_full
    "54001": Cause.OTHER,  # statement_too_complex
    "57014": Cause.OTHER,  # query_canceled
    "58030": Cause.OTHER,  # io_error
}


def refusal(sqlstate: str, context: str = "") -> asyncpg.PostgresError:
    """The server's error of this class."""
    error: asyncpg.PostgresError = asyncpg.PostgresError.new(
        {"C": sqlstate, "M": "message", "W": context}
    )
    return error


@pytest.mark.parametrize("sqlstate", CAUSES)
def test_sqlstate_has_a_cause(sqlstate: str) -> None:
    """Only the data of a row, a key, a lock and a deadlock are about some rows of a write."""
    assert classify(refusal(sqlstate)) == Blame(CAUSES[sqlstate])


@pytest.mark.parametrize(
    ("sqlstate", "context", "row"),
    [
        ("23514", "COPY events, line 1", 0),
        ("22021", "COPY events, line 17, column user_id", 16),
        ("23505", "COPY events, line 3", None),  # a duplicate is seldom the only one
        ("55P03", "COPY events, line 3", None),
        ("23514", 'SQL statement "COPY events, line 3"', None),  # of a trigger
        ("23514", "", None),
    ],
)
def test_copy_names_the_row_at_fault(sqlstate: str, context: str, row: int | None) -> None:
    """The number of a row is in the context, for a row that is refused for its data."""
    assert classify(refusal(sqlstate, context)).row == row


def test_rows_are_blamed_for_our_own_errors() -> None:
    """A row that was found, swallowed or cannot be encoded is at fault."""
    named = RowRefused(refusal("23514"), event("a"))
    assert classify(named) == Blame(Cause.ROW)
    assert classify(RowSwallowed("gone")) == Blame(Cause.SWALLOWED)


@pytest.mark.parametrize(
    "fields", [{"user_id": "\ud800"}, {"country": "\ud800"}, {"properties": {"a": "\ud800"}}]
)
def test_text_without_an_encoding_names_its_row(fields: dict[str, object]) -> None:
    """The row of a lone surrogate is known before anything is sent."""
    batch = [*events("a", "b"), event("c", **fields), event("d")]
    with pytest.raises(NotEncodable) as raised:
        encode_rows(batch)
    assert classify(raised.value) == Blame(Cause.ROW, 2)


def test_json_without_an_encoding_names_its_row() -> None:
    """The arrays of an INSERT hold texts, but for the properties, which are encoded."""
    with pytest.raises(NotEncodable) as raised:
        as_arrays([event("a"), event("b", properties={"a": "\ud800"})])
    assert classify(raised.value) == Blame(Cause.ROW, 1)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (asyncpg.UndefinedTableError("no table\nDETAIL:  a row"), "no table"),
        (asyncpg.InterfaceError("closed"), "closed"),
        (asyncpg.InternalClientError("state"), "state"),
        (ConnectionResetError(104, "reset"), "[Errno 104] reset"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_foreign_error_becomes_one_line(error: Exception, message: str) -> None:
    """Whatever the driver or the network raises, a command sees DatabaseError."""
    with pytest.raises(DatabaseError) as raised, translated():
        raise error
    assert (type(raised.value), str(raised.value)) == (DatabaseError, message)
    assert raised.value.__cause__ is error


def test_missing_privilege_is_its_own_error() -> None:
    """`check` has advice for a role without a privilege."""
    with pytest.raises(PrivilegeError), translated():
        raise asyncpg.InsufficientPrivilegeError("permission denied")
