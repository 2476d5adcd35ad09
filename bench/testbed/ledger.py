"""The ledger of a simulated vendor: every answer, with its time."""

from array import array
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

import msgspec

from bench.testbed.client import Answer, NoAnswer

_SERVER_ERROR = 500
# Answers that arrive at one moment may be noted in another order.
_DISORDER_S = 10.0


class AnswerKind(Enum):
    """The meaning of an answer to a vendor; the values are printed in reports."""

    WRITTEN = "200 written"
    DUPLICATE = "200 duplicate"
    DROPPED = "200 dropped"
    MALFORMED = "400 malformed"
    OTHER_2XX = "2xx outside the contract"
    REFUSED = "3xx or another 4xx"
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

    @property
    def is_unknown(self) -> bool:
        """Whether the gateway may have written the event, without an answer that reports it."""
        # A 503 too: a gateway that ends abandons the writes of a database that hangs.
        return not self.is_final and self is not AnswerKind.NO_CONNECTION

    @property
    def is_failure(self) -> bool:
        """Whether the gateway has failed its caller: a 5xx, or no answer while it waited."""
        return not self.is_final and self is not AnswerKind.HUNG_UP

    @property
    def has_row(self) -> bool:
        """Whether the event must have a row after this answer."""
        return self in (AnswerKind.WRITTEN, AnswerKind.DUPLICATE)

    @property
    def has_drop(self) -> bool:
        """Whether quarantine must have the callback after this answer, where it has a place."""
        return self in (AnswerKind.DROPPED, AnswerKind.MALFORMED)


_FINAL = {
    AnswerKind.WRITTEN,
    AnswerKind.DUPLICATE,
    AnswerKind.DROPPED,
    AnswerKind.MALFORMED,
    AnswerKind.OTHER_2XX,
    AnswerKind.REFUSED,
}
_RECEIPTS = {
    msgspec.json.encode(
        {"received": 1, "written": 0, "duplicate": 0, "dropped": 0} | {name: 1}
    ): kind
    for name, kind in (
        ("written", AnswerKind.WRITTEN),
        ("duplicate", AnswerKind.DUPLICATE),
        ("dropped", AnswerKind.DROPPED),
    )
}
_MALFORMED = {b'{"error":"Malformed body."}', b'{"error":"Too many parameters."}'}
_ERRORS = {
    (500, b'{"error":"Internal Server Error"}'): AnswerKind.ERROR,
    (503, b'{"error":"Service Unavailable"}'): AnswerKind.UNAVAILABLE,
}
_UNANSWERED = {
    NoAnswer.REFUSED: AnswerKind.NO_CONNECTION,
    NoAnswer.CLOSED: AnswerKind.CLOSED,
    NoAnswer.TIMED_OUT: AnswerKind.TIMED_OUT,
    NoAnswer.NOT_HTTP: AnswerKind.NOT_HTTP,
}
_ALL = list(AnswerKind)


def classify(answer: Answer) -> AnswerKind:
    """Return the meaning of an answer, to the letter of the documented contract."""
    if answer.missing is not None:
        return _UNANSWERED[answer.missing]
    if answer.status == 200:  # noqa: PLR2004
        return _RECEIPTS.get(answer.body, AnswerKind.OTHER_2XX)
    if answer.status >= _SERVER_ERROR:
        if answer.status == 503 and "retry-after" not in answer.headers:  # noqa: PLR2004
            return AnswerKind.OTHER_5XX
        return _ERRORS.get((answer.status, answer.body), AnswerKind.OTHER_5XX)
    if answer.status == 400 and answer.body in _MALFORMED:  # noqa: PLR2004
        return AnswerKind.MALFORMED
    return AnswerKind.OTHER_2XX if answer.status < 300 else AnswerKind.REFUSED  # noqa: PLR2004


class Entry(NamedTuple):
    """One line of the ledger: the number of the event, the answer, and both times."""

    event: int
    kind: AnswerKind
    sent_at: float
    answered_at: float


class Sending(NamedTuple):
    """One request of a callback that must be dropped: the number of its event, and its answer."""

    event: int
    kind: AnswerKind
    sent_at: float
    answered_at: float


class Ledger:
    """A million answers in 30 MB, and by its number each sending that must be dropped."""

    def __init__(self) -> None:
        self.callbacks = 0
        self.given_up: list[int] = []
        self.sendings: dict[int, Sending] = {}
        self._events = array("L")
        self._kinds = array("B")
        self._sent_at = array("d")
        self._answered_at = array("d")

    def __len__(self) -> int:
        """Return the number of answers."""
        return len(self._events)

    def note(self, event: int, kind: AnswerKind, sent_at: float, answered_at: float) -> None:
        """Add an answer."""
        self._events.append(event)
        self._kinds.append(_ALL.index(kind))
        self._sent_at.append(sent_at)
        self._answered_at.append(answered_at)

    def __iter__(self) -> Iterator[Entry]:
        """Yield every answer, in the order of arrival."""
        for event, kind, sent_at, answered_at in zip(
            self._events, self._kinds, self._sent_at, self._answered_at, strict=True
        ):
            yield Entry(event, _ALL[kind], sent_at, answered_at)

    def since(self, moment: float) -> Iterator[Entry]:
        """Yield the answers that arrived after a moment, the newest first."""
        for place in range(len(self) - 1, -1, -1):
            answered_at = self._answered_at[place]
            if answered_at < moment - _DISORDER_S:
                return
            if answered_at > moment:
                kind = _ALL[self._kinds[place]]
                yield Entry(self._events[place], kind, self._sent_at[place], answered_at)

    def of(self, event: int) -> list[Entry]:
        """Return the answers to one event."""
        return [entry for entry in self if entry.event == event]

    def tally(self) -> Counter[AnswerKind]:
        """Return the number of answers of each kind."""
        return Counter({_ALL[kind]: number for kind, number in Counter(self._kinds).items()})
