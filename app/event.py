"""The vocabulary: callbacks, apps, events, outcomes, and the identity of an event."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import cached_property
from hashlib import blake2b

import msgspec

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
ID_BYTES = 16

# There was no mobile measurement before 2010. A device's clock may be ahead by up to a day.
OLDEST_OCCURRED_AT = datetime(2010, 1, 1, tzinfo=UTC)
AHEAD_MAX = timedelta(hours=24)


class Retries(Enum):
    """When a vendor sends a callback again that has not been answered 200."""

    AFTER_5XX = "5xx"  # after a 5xx, and without an answer
    AFTER_TIMEOUT = "timeout"  # only without an answer in time
    NEVER = "never"  # or it is not known


# A placeholder in braces: vendors send one that they do not know unfilled. No JSON object has this
# form.
UNFILLED = re.compile(r"\{[A-Za-z0-9_|. -]{1,80}\}")


class Callback(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """One request of a vendor, decoded, verified, and without its credential.

    `query` holds the parameters of the URL. `body` is for vendors that send more than parameters;
    a JSON object in it is UTF-8 without BOM and lone surrogates, so that msgspec reads it, but it
    is not clean otherwise. The names in `headers` are in lower case. `occurred_from` is the oldest
    accepted `occurred_at`; `any_time` accepts all of them, for a gateway that cannot trust its own
    clock. `unfilled` is the vendor's pattern; `in_body` reads the parameters of the body.
    """

    query: Mapping[str, str]
    received_at: datetime
    occurred_from: datetime = OLDEST_OCCURRED_AT
    any_time: bool = False
    headers: Mapping[str, str] = {}
    body: bytes = b""
    in_body: Callable[[], Mapping[str, str]] | None = None
    unfilled: re.Pattern[str] = UNFILLED

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """The parameters of the URL and of a form or JSON body; those of the URL take precedence.

        They are clean: no NUL, no lone surrogate, no white space around a value.
        """
        return self.query if self.in_body is None else {**self.in_body(), **self.query}

    @property
    def present(self) -> Mapping[str, str]:
        """The parameters that are neither empty nor a placeholder left unfilled."""
        unfilled = self.unfilled.fullmatch
        sent = self.query if self.in_body is None else self.parameters
        return {
            name: value
            for name, value in sent.items()
            if value and (value[0].isalnum() or not unfilled(value))
        }

    @property
    def content_type(self) -> str:
        """The content type of the body, as sent; empty without one."""
        return self.headers.get("content-type", "")

    def accepts(self, occurred_at: datetime) -> bool:
        """Whether the time of an event is acceptable: neither too old nor in the future."""
        return self.occurred_from <= occurred_at <= self.received_at + AHEAD_MAX or self.any_time


_encode = msgspec.msgpack.Encoder().encode


# One parameter, or several that identify an event only together.
StableName = str | tuple[str, ...]


class App(msgspec.Struct, frozen=True, kw_only=True):
    """One app of a workspace: its names, and how its callbacks map to events.

    `keep` None keeps every parameter that is sent; `stable_id` None is the vendor's default.
    `options` is the vendor's own struct, None for a vendor without options. `cell` is the cell
    whose database has the app's events; empty without cells.
    """

    workspace_id: str
    vendor: str
    app_token: str
    events: Mapping[str, str] = {}
    activities: Mapping[str, str] = {}
    ignore: tuple[str, ...] = ()
    keep: tuple[str, ...] | None = None
    omit: tuple[str, ...] = ()
    stable_id: tuple[StableName, ...] | None = None
    options: msgspec.Struct | None = None
    cell: str = ""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """The canonical event, as it is stored: one field for each column of `events`.

    With `has_stable_id`, `event_id` does not depend on `occurred_at`, so that the sink must also
    recognise the event under another time. `ignored` names the identifiers that were sent as a
    null-like word or zeros, and so count as absent; it is not stored.
    """

    event_id: bytes
    occurred_at: datetime
    received_at: datetime
    workspace_id: str
    vendor: str
    app_token: str
    event_type: str
    user_id: str | None = None
    adid: str | None = None
    idfa: str | None = None
    gps_adid: str | None = None
    os_name: str | None = None
    country: str | None = None
    properties: Mapping[str, str] = {}
    has_stable_id: bool = False
    ignored: tuple[str, ...] = ()


class DropReason(Enum):
    """Why a callback is answered `dropped`; the values are the `reason` label of the metric."""

    UNKNOWN_APP = "unknown_app"
    IGNORED = "ignored"  # on purpose: the app lists it
    UNFILLED_PLACEHOLDER = "unfilled_placeholder"
    UNMAPPED_EVENT = "unmapped_event"
    INVALID_TIMESTAMP = "invalid_timestamp"
    REFUSED = "refused"
    MALFORMED = "malformed"  # answered 400: the body is unreadable
    OTHER_CELL = "other_cell"  # answered 503 where the vendor sends it again


class Drop(msgspec.Struct, frozen=True):
    """A callback that does not become an event, with the reason and its subject.

    The subject is the app token of an unknown app, the vendor's name of an unmapped or ignored
    event, the text of an invalid time, the placeholder left unfilled, the type of a refused event,
    the cell of an app that lives in another one. It is clean text.
    """

    reason: DropReason
    subject: str = ""


class Outcome(Enum):
    """The result of writing one event."""

    WRITTEN = "written"  # this call wrote the row
    DUPLICATE = "duplicate"  # exactly one row was there before
    REFUSED = "refused"  # the database will never accept it
    CONTESTED = "contested"  # undecided: another writer has it under way, or it needs a new chunk
    FAILED = "failed"  # possibly stored: the retry decides; never returned by a sink
    TOO_LATE = "too_late"  # not written: it has waited too long; never returned by a sink


def event_id(
    *,
    vendor: str,
    app_token: str,
    user: tuple[str, str],
    event_type: str,
    occurred_at: datetime,
    raw_event_id: str,
    stable_id: str | tuple[str, ...] | None,
) -> bytes:
    """Return the 16 bytes that identify an event, the same for every delivery of it.

    `user` is a pair of the kind of identifier and its value, so that a `user_id` never equals an
    `adid` of the same text. With a `stable_id`, the time and the raw event ID do not count.
    """
    moment = (occurred_at - EPOCH) // MICROSECOND
    identity = (moment, raw_event_id) if stable_id is None else ("stable", stable_id)
    parts = (vendor, app_token, user, event_type, identity)
    return blake2b(_encode(parts), digest_size=ID_BYTES).digest()


def digest(parts: object) -> bytes:
    """Return a hash of 16 bytes over nested sequences of texts and numbers.

    MessagePack writes each part with its type and length: no two lists give the same bytes.
    """
    return blake2b(_encode(parts), digest_size=ID_BYTES).digest()
