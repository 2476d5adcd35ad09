"""Drops and traces of rejected requests, in the form that quarantine keeps."""

from datetime import datetime

import msgspec

from app.event import DropReason, Event

# The subject of a drop is cut to so many characters.
SUBJECT_MAX = 200
# The form of an encoded event. A change of `Event` that old rows do not fit makes a new one.
EVENT_FORM = 1
# Of a drop: the bytes of its row and index entry beside their contents, and the length from which
# few rows fit on a page. Held against real tables by `test_size_of_a_drop_is_an_upper_estimate`.
ROW_BYTES = 150
LONG_ROW_BYTES = 700


class Dropped(msgspec.Struct, frozen=True, kw_only=True):
    """A dropped callback as quarantine keeps it: one field for each column of `dropped`.

    `query` and `body` are the bytes that were sent, without secrets and without the parameters
    that the app omits. A refused event is kept as `event`, in the encoding of `encode_event`;
    its `query` and `body` are empty. `account` is the subject under which its size is counted.
    """

    received_at: datetime
    vendor: str
    workspace_id: str  # empty for an unknown app
    app_token: str
    reason: DropReason
    subject: str
    method: str
    query: bytes = b""
    content_type: str = ""
    body: bytes = b""
    event: bytes | None = None
    account: str = ""

    @property
    def size_bytes(self) -> int:
        """The bytes that it takes in the database, with its index entry: an upper estimate."""
        indexed = len(f"{self.workspace_id}{self.reason.value}{self.subject}".encode())
        others = len(f"{self.vendor}{self.app_token}{self.method}{self.content_type}".encode())
        row = indexed + others + len(self.query) + len(self.body) + len(self.event or b"")
        # A page of 8 KB holds whole rows, or whole parts of a long one: the rest of it stays empty.
        gaps = row // (8 if row < LONG_ROW_BYTES else 2)
        # The pages of the index may be half empty.
        return ROW_BYTES + row + gaps + 2 * indexed


class RejectedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The trace of a request that was turned away unverified: nothing secret, no values.

    `vendor` is empty where no adapter has the name. `hint` compares the secret's shape to the
    configured ones.
    """

    received_at: datetime
    vendor: str
    reason: str
    address: str
    hint: str = ""


def encode_event(event: Event) -> bytes:
    """Return an event in the form that quarantine keeps; `decode_event` reads it."""
    return msgspec.msgpack.encode((EVENT_FORM, event))


def decode_event(encoded: bytes) -> Event:
    """Return an event from quarantine; raises ValueError for a form of another version."""
    form, event = msgspec.msgpack.decode(encoded, type=tuple[int, msgspec.Raw])
    if form != EVENT_FORM:
        raise ValueError(f"an event in form {form}; this version reads {EVENT_FORM}")
    return msgspec.msgpack.decode(event, type=Event)
