"""Numbers of thousands of series, which are cheap to count and to copy.

A tally is an array of doubles, one for each combination of label values. With a file the array is
memory-mapped: it outlives its process, other processes read it, and a replacement of the process
continues in it.
"""

from array import array
from collections.abc import Callable, Iterable
from contextlib import suppress
from mmap import mmap
from pathlib import Path

import msgspec

Labels = tuple[str, ...]
Numbers = Iterable[tuple[Labels, float]]

CAPACITY_MIN = 64
# A file begins with its capacity, an int64, and as many doubles. The labels of each double that is
# in use follow, a line of JSON each: only these lines are appended.
_DOUBLE = 8
_decode_labels = msgspec.json.Decoder(Labels).decode


class Tally:
    """The numbers of one metric in one process.

    When the array is full, series that are not `is_wanted` are removed.
    """

    def __init__(self, is_wanted: Callable[[Labels], bool]) -> None:
        self.is_wanted = is_wanted
        self._path: Path | None = None
        self._positions: dict[Labels, int] = {}
        self._capacity = 0
        self._values = memoryview(bytearray()).cast("d")

    def share(self, path: Path) -> None:
        """Keep the numbers in a file from now on, added to those that are in it."""
        numbers = dict(self.snapshot())
        with suppress(FileNotFoundError):
            for labels, value in read(path):
                numbers[labels] = numbers.get(labels, 0.0) + value
        self._path = path
        self._replace(numbers)

    def add(self, labels: Labels, number: float = 1) -> None:
        """Add to the number of a series, which begins at 0; a full disk loses the addition.

        A full disk under the numbers of several workers fails no committed callback, and hides no
        other series: only one that is new, or the first in a fuller file, needs the disk.
        """
        position = self._positions.get(labels)
        if position is None:
            try:
                position = self._add_series(labels)
            except OSError:
                return
        self._values[position] += number

    def set(self, labels: Labels, number: float) -> None:
        """Set the number of a series."""
        position = self._positions.get(labels)
        if position is None:
            position = self._add_series(labels)
        self._values[position] = number

    def snapshot(self) -> Numbers:
        """Return a copy of the current numbers, split into pairs lazily."""
        labels = list(self._positions)
        return zip(labels, array("d", self._values[: len(labels)].tobytes()), strict=True)

    def _add_series(self, labels: Labels) -> int:
        if len(self._positions) == self._capacity:
            self._replace({each: n for each, n in self.snapshot() if self.is_wanted(each)})
        position = len(self._positions)
        if self._path is not None:
            # In one write, and before the number: a reader finds the labels of every number.
            with self._path.open("ab", buffering=0) as file:
                file.write(_line(labels))
        self._positions[labels] = position
        return position

    def _replace(self, numbers: dict[Labels, float]) -> None:
        """Replace the array with one that holds these numbers and has room for more."""
        capacity = max(CAPACITY_MIN, 2 * len(numbers))
        values = array("d", numbers.values())
        values.frombytes(bytes(_DOUBLE * (capacity - len(numbers))))
        if self._path is None:
            view = memoryview(bytearray(values))
        else:
            new = self._path.with_suffix(".new")
            with new.open("w+b") as file:
                file.write(array("q", [capacity]).tobytes() + values.tobytes())
                file.writelines(map(_line, numbers))
                file.flush()
                # The mapping lives as long as its view.
                view = memoryview(mmap(file.fileno(), _DOUBLE * (1 + capacity)))[_DOUBLE:]
            new.replace(self._path)
        # Last: if the file cannot be written, the old array stays in use.
        self._values, self._capacity = view.cast("d"), capacity
        self._positions = {labels: position for position, labels in enumerate(numbers)}


def _line(labels: Labels) -> bytes:
    return msgspec.json.encode(labels) + b"\n"


def read(path: Path) -> Numbers:
    """Return the numbers in the file of a tally as they are now; raises FileNotFoundError."""
    with path.open("rb") as file:
        [capacity] = array("q", file.read(_DOUBLE))
        # Numbers before labels: a series that is added in between is read as 0.
        values = array("d", file.read(_DOUBLE * capacity))
        lines = file.read().split(b"\n")[:-1]
    return zip(map(_decode_labels, lines), values, strict=False)
