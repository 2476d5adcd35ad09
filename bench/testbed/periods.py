"""Periods in which simulated events occur on other days than their neighbours."""

from collections.abc import Sequence
from datetime import datetime, timedelta
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
    periods: Sequence[Period], number: int, of_day: timedelta, random: Random
) -> datetime | None:
    """Return the time of an event in a span of its period; None where it is not in a share.

    Events with different times of day have different times in a span of up to a day.
    """
    for period in periods:
        if period.first <= number < period.end and random.random() < period.share:
            start, length = random.choice(period.spans)
            return start + of_day % length
    return None
