"""Simulated callbacks that must be dropped, and the row that quarantine must hold of each."""

from random import Random
from typing import NamedTuple
from urllib.parse import urlencode

from bench.testbed.callbacks import (
    APPS,
    ENDPOINT,
    EVENTS,
    IGNORED,
    IGNORING,
    SECRET,
    any_request,
    query,
)
from bench.testbed.client import post_request

# The number of a sending: the vendor replaces it in each, for the rows to be told apart.
SENDING = b"sending-0000000000"
# Rules of the database alone, which no gateway knows of: a check, a value that does not convert,
# and an index that takes no long text. Each refuses a row with another error.
_ENVIRONMENT = "(properties ->> 'environment')"
POISON_RULES = (
    f"ALTER TABLE events ADD CHECK ({_ENVIRONMENT} IS DISTINCT FROM 'forbidden')",
    f"ALTER TABLE events ADD CHECK (nullif({_ENVIRONMENT}, 'production')::numeric IS NULL)",
    "CREATE INDEX ON events ((properties ->> 'tracker_name'))",
)
_FORM, _JSON = "application/x-www-form-urlencoded", "application/json"
# Quarantine keeps no more of one callback.
_LARGEST_BYTES = 64 * 1024
_TOO_MANY = b"&".join(b"n%d=1" % number for number in range(4_001))
_MALFORMED = (
    (_JSON, b'{"created_at": 1750500000'),
    (_JSON, b"[1, 2]"),
    (_JSON, b'{"secret": "%s"' % SECRET.encode()),
    ("text/plain", b"\xff\x00 hello"),
    (_FORM, _TOO_MANY),
)
_SPELLED = "".join(f"%{ord(letter):02x}" for letter in SECRET)
# In front of the credential of a URL: the secret once more, in other places and spellings.
_ONCE_MORE = (
    "",
    f"secret={SECRET}&",
    f"%73ecret={SECRET}&",
)
# In a parameter that an event keeps: not of a callback that may become one.
_AS_LABEL = (f"label={SECRET}&", f"label=my+{_SPELLED}&")

Sent = dict[str, str]


class Kept(NamedTuple):
    """What quarantine must hold of a callback beside its bytes."""

    reason: str
    subject: str
    workspace_id: str
    app_token: str


class Drop(NamedTuple):
    """A callback that must be dropped, and its row; None where quarantine must not hold it."""

    request: bytes
    kept: Kept | None


def numbered(request: bytes, number: int) -> bytes:
    """Return a request with the number of its sending; its length stays."""
    return request.replace(SENDING, b"sending-%010d" % number)


def unmapped(sent: Sent, random: Random) -> Drop:
    """An event that no app has mapped: of ordinary and awkward names, or of a kind alone."""
    token = random.choice(("n0b0dy", "two words", "größe", SECRET, ""))
    if token:
        sent["event_token"] = token
    else:
        del sent["event_token"]
    # A parameter that holds the secret is left out.
    subject = token if token and token != SECRET else sent["activity_kind"]
    return _kept(_any_request(sent, random), sent, "unmapped_event", subject, random)


def unknown_app(sent: Sent, random: Random) -> Drop:
    """An app that the workspaces file does not have."""
    sent["app_token"] = "n0such4pp"  # noqa: S105 - opens nothing
    return _kept(_any_request(sent, random), sent, "unknown_app", sent["app_token"], random)


def unfilled(sent: Sent, random: Random) -> Drop:
    """A callback URL that is set up wrongly: a placeholder was never replaced."""
    name = random.choice(("event_token", "created_at"))
    sent[name] = f"{{{name}}}"
    return _kept(_any_request(sent, random), sent, "unfilled_placeholder", sent[name], random)


def bad_time(sent: Sent, random: Random) -> Drop:
    """A time that is none."""
    sent["created_at"] = random.choice(("", "soon", "2026-02-30T12:00:00Z", "99999999999999"))
    return _kept(_any_request(sent, random), sent, "invalid_timestamp", sent["created_at"], random)


def poison(sent: Sent, random: Random) -> Drop:
    """An event that the database refuses."""
    rule = random.randrange(len(POISON_RULES))
    if rule == 0:
        sent["environment"] = "forbidden"
    elif rule == 1:
        sent["environment"] = "number"
    else:
        # Random text does not compress: it exceeds the size of an index entry.
        sent["tracker_name"] = random.randbytes(6_000).hex()
    # Without the secret once more: an attempt to write it leaves it in the database's files.
    event_type, app_token = EVENTS[sent["event_token"]], sent["app_token"]
    return Drop(any_request(sent, random), Kept("refused", event_type, APPS[app_token], app_token))


def malformed(sent: Sent, random: Random) -> Drop:
    """A body that is neither a form nor a JSON object, or has too many parameters."""
    content_type, body = random.choice(_MALFORMED)
    request = post_request(f"{ENDPOINT}?{query(sent)}", body, content_type)
    subject = "too_many_parameters" if body == _TOO_MANY else "malformed_body"
    return _kept(request, sent, "malformed", subject, random)


def ignored(sent: Sent, random: Random) -> Drop:
    """An event that its app ignores on purpose."""
    sent |= {"app_token": IGNORING, "event_token": IGNORED}
    return Drop(any_request(sent, random), None)


def too_large(sent: Sent, random: Random) -> Drop:
    """An unmapped event that is larger than quarantine keeps."""
    label = "x" * random.randint(_LARGEST_BYTES, 2 * _LARGEST_BYTES)
    body = urlencode(sent | {"event_token": "n0b0dy", "label": label})
    target = f"{ENDPOINT}?{query({'app_token': sent['app_token']})}"
    return Drop(post_request(target, body.encode(), _FORM), None)


def _any_request(sent: Sent, random: Random) -> bytes:
    """Return a request; of some that are a POST the body holds the secret too."""
    return any_request(sent | random.choice(({}, {"secret": SECRET})), random)


def _kept(request: bytes, sent: Sent, reason: str, subject: str, random: Random) -> Drop:
    """Return a drop with its row; its URL may hold the secret once more."""
    app_token = sent["app_token"]
    may_be_written = reason == "refused"  # where the rules of the table are gone
    once_more = random.choice(_ONCE_MORE if may_be_written else _ONCE_MORE + _AS_LABEL).encode()
    request = request.replace(b"?secret=", b"?" + once_more + b"secret=", 1)
    return Drop(request, Kept(reason, subject, APPS.get(app_token, ""), app_token))
