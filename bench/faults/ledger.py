"""What the vendor was told: every answer, with its time."""

from array import array
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import msgspec

from bench.testbed.caller import Answer

_SERVER_ERROR = 500


class Told(Enum):
    """An answer as the vendor understands it; the values are what the report prints."""

    WRITTEN = "200 written"
    DUPLICATE = "200 duplicate"
    DROPPED = "200 dropped"
    OTHER_2XX = "2xx outside the contract"
    REFUSED = "3xx or 4xx"
    ERROR = "500"
    UNAVAILABLE = "503"
    OTHER_5XX = "5xx outside the contract"
    NOT_HTTP = "no answer of HTTP"
    NO_CONNECTION = "no answer: refused"
    CLOSED = "no answer: closed"
    TIMED_OUT = "no answer: timed out"
    HUNG_UP = "no answer: the caller hung up"

    @property
    def is_final(self) -> bool:
        """Whether the vendor never sends this callback again."""
        return self in _FINAL


_FINAL = {Told.WRITTEN, Told.DUPLICATE, Told.DROPPED, Told.OTHER_2XX, Told.REFUSED}
_RECEIPTS = {
    msgspec.json.encode({"received": 1, "written": 0, "duplicate": 0, "dropped": 0} | {name: 1}): to
    for name, to in (
        ("written", Told.WRITTEN),
        ("duplicate", Told.DUPLICATE),
        ("dropped", Told.DROPPED),
    )
}
_ERRORS = {
    (500, b'{"error":"Internal Server Error"}'): Told.ERROR,
    (503, b'{"error":"Service Unavailable"}'): Told.UNAVAILABLE,
}
_UNANSWERED = {
    b"refused": Told.NO_CONNECTION,
    b"closed": Told.CLOSED,
    b"timed out": Told.TIMED_OUT,
    b"not HTTP": Told.NOT_HTTP,
}
_ALL = list(Told)


def understand(answer: Answer) -> Told:
    """Return what an answer says, to the letter of the contract."""
    if answer.status == 0:
        return _UNANSWERED[answer.body]
    if answer.status == 200:  # noqa: PLR2004
        return _RECEIPTS.get(answer.body, Told.OTHER_2XX)
    if answer.status >= _SERVER_ERROR:
        if answer.status == 503 and b"\r\nretry-after: " not in answer.head.lower():  # noqa: PLR2004
            return Told.OTHER_5XX
        return _ERRORS.get((answer.status, answer.body), Told.OTHER_5XX)
    return Told.OTHER_2XX if answer.status < 300 else Told.REFUSED  # noqa: PLR2004


class Entry(NamedTuple):
    """One line of the ledger: whose story it belongs to, what was said, and when."""

    story: int
    told: Told
    answered_at: float


class Ledger:
    """Remembers a million answers in 20 MB."""

    def __init__(self) -> None:
        self.callbacks = 0
        self.given_up: list[int] = []
        self._stories = array("L")
        self._told = array("B")
        self._answered_at = array("d")

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._stories)

    def note(self, story: int, told: Told, answered_at: float) -> None:
        """Write one answer down."""
        self._stories.append(story)
        self._told.append(_ALL.index(told))
        self._answered_at.append(answered_at)

    def __iter__(self) -> Iterator[Entry]:
        """Yield every answer, in the order in which they came."""
        for story, told, answered_at in zip(
            self._stories, self._told, self._answered_at, strict=True
        ):
            yield Entry(story, _ALL[told], answered_at)

    def of(self, story: int) -> list[Entry]:
        """Return the answers to one story."""
        return [entry for entry in self if entry.story == story]

    def tally(self) -> Counter[Told]:
        """Return how often each answer was given."""
        return Counter({_ALL[told]: number for told, number in Counter(self._told).items()})
