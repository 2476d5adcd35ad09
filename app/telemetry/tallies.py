"""Numbers of thousands of series, which cost next to nothing to count and to copy.

A tally is one piece of memory that holds a double for each combination of label values. Where it
has a file, the memory is the file's: it outlives its process, other processes read it, and the
process that takes its place goes on in it.
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
# in use follow, a line of JSON each: only they are appended.
_DOUBLE = 8
_decode_labels = msgspec.json.Decoder(Labels).decode


class Tally:
    """The numbers of one metric in one process.

    Labels for which `is_wanted` is false make room for others when the memory is full.
    """

    def __init__(self, is_wanted: Callable[[Labels], bool]) -> None:
        self.is_wanted = is_wanted
        self._path: Path | None = None
        self._places: dict[Labels, int] = {}
        self._capacity = 0
        self._values = memoryview(bytearray()).cast("d")

    def share(self, path: Path) -> None:
        """Keep the numbers in a file from now on, and go on with those that are in it."""
        numbers = dict(self.snapshot())
        with suppress(FileNotFoundError):
            for labels, value in read(path):
                numbers[labels] = numbers.get(labels, 0.0) + value
        self._path = path
        self._make(numbers)

    def add(self, labels: Labels, number: float = 1) -> None:
        """Add a number, to 0 where there is none yet."""
        place = self._places.get(labels)
        if place is None:
            place = self._enter(labels)
        self._values[place] += number

    def set(self, labels: Labels, number: float) -> None:
        """Put a number in place of the one that is there."""
        place = self._places.get(labels)
        if place is None:
            place = self._enter(labels)
        self._values[place] = number

    def snapshot(self) -> Numbers:
        """Return the numbers as they are now: a copy, which is taken apart as it is read."""
        labels = list(self._places)
        return zip(labels, array("d", self._values[: len(labels)].tobytes()), strict=True)

    def _enter(self, labels: Labels) -> int:
        if len(self._places) == self._capacity:
            self._make({each: n for each, n in self.snapshot() if self.is_wanted(each)})
        place = len(self._places)
        if self._path is not None:
            # In one piece, and before the number: who reads the file finds the labels of each.
            with self._path.open("ab", buffering=0) as file:
                file.write(_line(labels))
        self._places[labels] = place
        return place

    def _make(self, numbers: dict[Labels, float]) -> None:
        """Have new memory in place of the old, with these numbers in it and room for more."""
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
                # It lives as long as the view of it.
                view = memoryview(mmap(file.fileno(), _DOUBLE * (1 + capacity)))[_DOUBLE:]
            new.replace(self._path)
        # Not before: where the file cannot be written the old memory goes on.
        self._values, self._capacity = view.cast("d"), capacity
        self._places = {labels: place for place, labels in enumerate(numbers)}


def _line(labels: Labels) -> bytes:
    return msgspec.json.encode(labels) + b"\n"


def read(path: Path) -> Numbers:
    """Return the numbers in the file of a tally as they are now; raises FileNotFoundError."""
    with path.open("rb") as file:
        [capacity] = array("q", file.read(_DOUBLE))
        # First the numbers, then what they belong to: what comes between is not read.
        values = array("d", file.read(_DOUBLE * capacity))
        lines = file.read().split(b"\n")[:-1]
    return zip(map(_decode_labels, lines), values, strict=False)
