"""Adjust's `created_at`: valid times, their instants, and times that are dropped."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from adapters import adjust
from app.event import OLDEST_OCCURRED_AT, Drop, DropReason, Event
from app.normalize import clean
from tests.adapter_cases import RECEIVED_AT, callback_of
from tests.unit.test_adjust import CONFIGURED, parse

# As it stands in the URL, where a + is a space.
TIMES = {
    "1750500000": "10:00:00",
    "%201750500000%0A": "10:00:00",
    "1750500000.5": "10:00:00.5",
    "1750500000.9999999": "10:00:00.999999",
    "1750500000." + "1" * 5000: "10:00:00.111111",
    "1750500000000": "10:00:00",
    "1750500000123": "10:00:00.123",
    "2025-06-21T10:00:00Z": "10:00:00",
    "2025-06-21T10:00:00": "10:00:00",
    "2025-06-21%2010:00:00": "10:00:00",
    "2025-06-21+10:00:00Z": "10:00:00",
    "2025-06-21T10:00:00.5Z": "10:00:00.5",
    "2025-06-21T10:00:00.123456789": "10:00:00.123456",
    "2025-06-21T12:00:00%2B02:00": "10:00:00",
    "2025-06-21T12:00:00%2B0200": "10:00:00",
    "2025-06-21T12:00:00Z%2B0200": "10:00:00",
    "2025-06-21T12:00:00Z%2B02:00": "10:00:00",
    "2025-06-21T08:00:00Z-0200": "10:00:00",
    "2025-06-21T06:30:00-03:30": "10:00:00",
    "2025-06-21T10:00:00-00:00": "10:00:00",
    "2025-06-21T12:00:00+02:00": "10:00:00",
    "2025-06-21T12:00:00+0200": "10:00:00",
    "2025-06-21T12:00:00Z+0200": "10:00:00",
    "2025-06-21T10:00:00.000+0000": "10:00:00",
    "2025-06-21+12:00:00+02:00": "10:00:00",
    "2025-06-22T00:00:00+14:00": "10:00:00",
    "2025-06-21T09:59:60Z": "10:00:00",
    "2025-06-21T11:59:60.25+02:00": "10:00:00.25",
}


@pytest.mark.parametrize(("raw", "expected"), TIMES.items(), ids=[raw[:40] for raw in TIMES])
def test_every_form_of_a_time_is_read(raw: str, expected: str) -> None:
    """Seconds, milliseconds and every form of ISO 8601 that Adjust sends are one instant in UTC."""
    query = f"event_token=g3mz3t&adid=1&created_at={raw}".encode()
    parsed = adjust.parse(callback_of(query), CONFIGURED)
    assert isinstance(parsed, Event)
    assert parsed.occurred_at == datetime.fromisoformat(f"2025-06-21T{expected:0<8}+00:00")
    assert parsed.occurred_at.tzinfo is UTC


NO_TIMES = [
    # not a number, or none of Adjust's
    "", "abc", "0", "-1", "+1750500000", "1750500000.", ".5", "1750500000.5.5", "1750500000,5",
    "1_750_500_000", "1 750 500 000", "1e9", "0x6856a3a0", "NaN", "inf", "175050000000",
    "17505000000000", "9" * 25, "9" * 5000, "\u0661\u0667" + "0" * 8, "\uff11750500000",
    "\xb2" * 10,
    # not the extended form with seconds
    "2025-06-21", "2025-06-21T10Z", "2025-06-21T10:00Z", "20250621T100000Z", "2025-06-21T100000Z",
    "2025-W25-6T10:00:00Z", "2025-172T10:00:00Z", "2025-6-21T10:00:00Z", "25-06-21T10:00:00Z",
    "2025-06-21t10:00:00Z", "2025-06-21T10:00:00z", "2025-06-21  10:00:00", "+2025-06-21T10:00:00",
    "202\uff15-06-21T10:00:00Z", "2016-04-04T23:16UTC", "2025-06-21T10:00:00UTC",
    "2025-06-21T10:00:00.Z", "2025-06-21T10:00:00.1.1Z", "2017-01-02T15%3A04%3A05Z",
    # not in the calendar
    "2025-02-29T10:00:00Z", "2025-13-01T10:00:00Z", "2025-06-00T10:00:00Z", "0000-01-01T00:00:00Z",
    "2025-06-21T24:00:00Z", "2025-06-21T25:00:00Z", "2025-06-21T10:60:00Z", "2025-06-21T10:00:61Z",
    "9999-12-31T23:59:60Z", "9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00+01:00",
    # no offset
    "2025-06-21T10:00:00+02", "2025-06-21T10:00:00+2:00", "2025-06-21T10:00:00+02:60",
    "2025-06-21T10:00:00+24:00", "2025-06-21T10:00:00-99:99", "2025-06-21T10:00:00ZZ",
    "2025-06-21T10:00:00Z+02", "2025-06-21T10:00:00  0200", "2025-06-21T10:00:00+02:00Z",
    "2025-06-21T10:00:00\u221202:00", "2025-06-21T10:00:00+02:0\uff10",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_TIMES, ids=[ascii(text[:40]) for text in NO_TIMES])
def test_invalid_time_is_dropped(text: str) -> None:
    """A text that is not exactly one of the forms is dropped: a guess would be stored for ever."""
    assert parse({"created_at": text}) == Drop(DropReason.INVALID_TIMESTAMP, clean(text))


@pytest.mark.parametrize("retained_from", [None, datetime(2025, 5, 1, 0, 0, 0, 7, UTC)])
@pytest.mark.parametrize("side", ["oldest", "newest"])
def test_accepted_window_is_exact(side: str, retained_from: datetime | None) -> None:
    """The window is exact to the microsecond: at its edge an event is kept, beyond it dropped."""
    edges = {"oldest": retained_from or OLDEST_OCCURRED_AT, "newest": RECEIVED_AT + timedelta(1)}
    beyond = timedelta(microseconds=-1 if side == "oldest" else 1)
    for moment, kind in ((edges[side], Event), (edges[side] + beyond, Drop)):
        callback = callback_of(f"event_token=g3mz3t&created_at={moment:%FT%T.%fZ}".encode())
        if retained_from is not None:
            callback = msgspec.structs.replace(callback, occurred_from=retained_from)
        assert isinstance(adjust.parse(callback, CONFIGURED), kind)
