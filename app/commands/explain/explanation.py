"""The explanation of one request: every step of its way, and the verdict."""

from collections.abc import Iterator, Sequence
from enum import Enum

import msgspec


class Verdict(Enum):
    """The end of a request."""

    EVENT = "event"
    DROPPED = "dropped"  # answered 200
    REJECTED = "rejected"  # answered 4xx
    FAILED = "failed"  # answered 5xx
    UNANSWERED = "unanswered"  # the connection is closed
    UNREADABLE = "unreadable"  # no request in the input


# Names in one line.
LISTED_MAX = 30
EXIT_CODES = {Verdict.EVENT: 0, Verdict.UNREADABLE: 2}


class Explanation(msgspec.Struct, kw_only=True):
    """One input, explained; empty texts are unknown. No text holds a secret."""

    input: int
    verdict: Verdict
    becomes: str
    status: int | None = None
    answer: str = ""
    reason: str = ""
    subject: str = ""
    method: str = ""
    vendor: str = ""
    secret: str = ""
    address: str = ""
    app_token: str = ""
    workspace_id: str = ""
    cell: str = ""
    event: str = ""
    event_type: str = ""
    time: str = ""
    occurred_at: str = ""
    user: str = ""
    event_id: str = ""
    identity: list[str] = []
    kept: list[str] = []
    not_kept: list[str] = []
    absent: list[str] = []
    notes: list[str] = []
    hints: list[str] = []
    table: str = ""
    mended: "Explanation | None" = None

    @property
    def exit_code(self) -> int:
        """0 for an event, 2 for an unreadable input, 1 for everything else."""
        return EXIT_CODES.get(self.verdict, 1)


def as_text(explanation: Explanation, *, is_numbered: bool = False) -> str:
    """Return an explanation as lines for people, with the number of its input where wanted."""
    lines = [f" {name:<11} {text}" for name, text in _rows(explanation) if text]
    if is_numbered:
        lines.insert(0, f" {'input':<11} {explanation.input}")
    if explanation.mended:
        lines += ["", " the same with & in place of each of them:", as_text(explanation.mended)]
    return "\n".join(lines)


def _rows(explanation: Explanation) -> Iterator[tuple[str, str]]:
    e = explanation
    for note in e.notes:
        yield "note", note
    yield "vendor", e.vendor
    yield "secret", e.secret
    yield "address", e.address
    if e.secret:
        cell = f", cell {e.cell}" if e.cell else ""
        yield "app", f"{e.app_token or 'no app_token'} -> {e.workspace_id or 'unknown'}{cell}"
    yield "event", e.event
    yield "time", e.time
    yield "user", e.user
    if e.event_id:
        names = f"by {_listed(e.identity)}; " if e.identity else ""
        yield "identity", f"{names}event_id {e.event_id}"
        yield "kept", _listed(e.kept) or "nothing"
    yield "not kept", _listed(e.not_kept)
    yield "absent", _listed(e.absent)
    yield "becomes", e.becomes
    yield "answer", f"{e.status} {e.answer}" if e.status else ""
    yield "", e.table
    for hint in e.hints:
        yield "hint", hint


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED_MAX} more" if len(names) > LISTED_MAX else ""
    return ", ".join(names[:LISTED_MAX]) + more
