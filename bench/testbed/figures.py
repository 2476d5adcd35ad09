"""Medians and percentiles."""

from collections.abc import Iterable, Sequence
from statistics import median


def median_of(values: Iterable[float]) -> float:
    """Return the median of some rounds."""
    return median(list(values))


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return a percentile of sorted values; 0 without any."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
