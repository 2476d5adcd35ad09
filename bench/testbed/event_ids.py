"""The event ID of a simulated event, from its parts as docs/contract.md lists them.

The product computes the same in `app/event.py` and `adapters/_url.py`, none of which is used here.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from uuid import UUID

import msgspec

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# By precedence.
_USERS = ("user_id", "adid", "gps_adid", "idfa")

User = tuple[str, str]
NOBODY: User = ("nobody", "")


def user_of(columns: Mapping[str, str], others: Mapping[str, str]) -> User:
    """Return the first identifier in the columns; without any, a hash of all other parameters.

    `others` lack the time, the stable ID and the secret.
    """
    for kind in _USERS:
        if kind in columns:
            return kind, columns[kind]
    return "parameters", _digest(sorted(others.items())).hex()


def event_id_of(
    user: User,
    *,
    vendor: str,
    app_token: str,
    event_type: str,
    occurred_at: datetime,
    raw_event_id: str,
    stable_id: str | tuple[str, ...] = "",
) -> UUID:
    """Return the ID of an event; with a stable ID, its time and its raw event ID do not count.

    A stable ID of several parameters is the list of their values.
    """
    last: tuple[object, object] = ("stable", stable_id)
    if not stable_id:
        last = ((occurred_at - _EPOCH) // timedelta(microseconds=1), raw_event_id)
    return UUID(bytes=_digest((vendor, app_token, user, event_type, last)))


def _digest(parts: object) -> bytes:
    return blake2b(msgspec.msgpack.encode(parts), digest_size=16).digest()
