"""The explanation of one request: every step of its way, and the verdict."""

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


def as_json(explanation: Explanation) -> str:
    """Return an explanation as one line of JSON."""
    return msgspec.json.encode(explanation).decode()


def as_text(explanation: Explanation) -> str:
    """Return an explanation as lines for people."""
    lines = list(_rows(explanation))
    return "\n".join(f" {name:<11} {text}".rstrip() for name, text in lines)
