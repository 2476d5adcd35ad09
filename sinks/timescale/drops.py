"""Reads of the quarantine, for the commands."""

from datetime import datetime
from typing import NamedTuple

import msgspec

from app.event import DropReason


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the quarantine; None does not restrict it.

    `since` and `until` are about the arrival; `until` itself is outside.
    """

    since: datetime | None = None
    until: datetime | None = None
    vendor: str | None = None
    workspace_id: str | None = None
    app_token: str | None = None
    reason: DropReason | None = None
    subject: str | None = None


class Condition(NamedTuple):
    """A condition of SQL, with the values of its parameters `$1` and up."""

    sql: str
    values: tuple[datetime | str, ...]


def condition_of(selection: Selection) -> Condition:
    """Return the condition under which a row of `dropped` is in a selection."""
    wanted: tuple[tuple[str, datetime | str | None], ...] = (
        ("received_at >=", selection.since),
        ("received_at <", selection.until),
        ("vendor =", selection.vendor),
        ("workspace_id =", selection.workspace_id),
        ("app_token =", selection.app_token),
        ("reason =", None if selection.reason is None else selection.reason.value),
        ("subject =", selection.subject),
    )
    given = [(test, value) for test, value in wanted if value is not None]
    tests = [f"{test} ${number}" for number, (test, _) in enumerate(given, 1)]
    return Condition(" AND ".join(tests) or "true", tuple(value for _, value in given))
