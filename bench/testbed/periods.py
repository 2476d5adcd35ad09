"""Periods in which simulated events occur on other days than their neighbours."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import NamedTuple


class Period(NamedTuple):
    """Events from a number to another, of which a share occurs in one of these spans.

    Those with a stable ID keep out of it: they have two times, of which one might lie outside.
    """

    first: int
    end: int
    share: float
    spans: Sequence[tuple[datetime, timedelta]]


def moment_of(
    periods: Sequence[Period], number: int, random: Random, step_s: int
) -> datetime | None:
    """Return the time of an event in a span of its period; None where it is not in a share.

    It is a multiple of `step_s`: events that differ in a second within it never have one time.
    """
    for period in periods:
        if period.first <= number < period.end and random.random() < period.share:
            start, length = random.choice(period.spans)
            first, last = (int(time.timestamp()) // step_s for time in (start, start + length))
            return datetime.fromtimestamp(step_s * random.randrange(first + 1, last), UTC)
    return None
