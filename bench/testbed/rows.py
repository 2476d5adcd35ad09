"""The expected row of a simulated event, and its comparison with a row of the database."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from bench.testbed.callbacks import APPS, EVENTS

# The parameter that holds the number of the event, in `properties` of its row.
NUMBER = "event_number"
_COLUMNS = (
    "event_id", "workspace_id", "vendor", "app_token", "event_type", "user_id", "adid", "gps_adid",
    "idfa", "os_name", "country",
)  # fmt: skip


class Version(NamedTuple):
    """The columns that differ between the deliveries of an event, as one delivery sets them."""

    occurred_at: datetime
    properties: Mapping[str, str]


@dataclass(frozen=True)
class Row:
    """The expected row: its columns, and the versions of its deliveries; any of them is right.

    `received_at` is not known before.
    """

    event_id: UUID
    workspace_id: str
    vendor: str
    app_token: str
    event_type: str
    os_name: str
    country: str
    versions: Sequence[Version]
    user_id: str | None = None
    adid: str | None = None
    gps_adid: str | None = None
    idfa: str | None = None
    has_stable_id: bool = False


def row_of(
    event_id: UUID,
    sent: Mapping[str, str],
    columns: Mapping[str, str],
    *,
    vendor: str,
    token: str,
    versions: Sequence[Version],
    has_stable_id: bool,
) -> Row:
    """Return the row of an event with parameters of Adjust's; `columns` are the user's."""
    return Row(
        event_id=event_id,
        workspace_id=APPS[sent["app_token"]],
        vendor=vendor,
        app_token=sent["app_token"],
        event_type=EVENTS[token],
        os_name=sent["os_name"],
        country=sent["country"].upper(),
        versions=versions,
        user_id=columns.get("user_id"),
        adid=columns.get("adid"),
        gps_adid=columns.get("gps_adid"),
        idfa=columns.get("idfa"),
        has_stable_id=has_stable_id,
    )


def differences(found: Mapping[str, object], expected: Row) -> Iterator[str]:
    """Yield the columns of a row that differ from the callback; `properties` are decoded."""
    for column in _COLUMNS:
        if found[column] != getattr(expected, column):
            yield column
    if (found["occurred_at"], found["properties"]) not in expected.versions:
        yield "occurred_at or properties"


def number_in(properties: Mapping[str, str]) -> int | None:
    """Return the number of the event that a row belongs to; None for a row of no callback."""
    text = properties.get(NUMBER, "")
    return int(text) if text.isdecimal() else None
