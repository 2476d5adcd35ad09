"""The identities of simulated events, which share all parts of an event ID but one.

The events of a block are the points of a grid of app, event token, user, vendor and second. Each
block has its users, its seconds and its stable IDs, and so has many pairs of events that differ in
one of these parts alone.
"""

from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import NamedTuple
from uuid import UUID

from bench.testbed.callbacks import APPS, BY_KIND, EVENTS, KIND

_APPS, _TOKENS = tuple(APPS), tuple(EVENTS)
_BLOCKS_REMEMBERED = 512
_ZEROS = str(UUID(int=0))
# The same text in upper case and in lower case.
_DECIMAL = 10**32
# Two tokens of one event type.
_FIRST, _SECOND = "g3mz3t", "g3mz3u"
_ALIASES = {_FIRST: _SECOND, _SECOND: _FIRST}


class User(NamedTuple):
    """The identifiers of a user as Adjust sends them, and as the columns hold them.

    `kept` are those that the gateway ignores and keeps in `properties`. Without a column the user
    is one device without an ID, of which each event has another.
    """

    sent: Mapping[str, str]
    columns: Mapping[str, str]
    kept: Mapping[str, str] = {}


class Point(NamedTuple):
    """The parts of the identity of one event.

    `second` counts from a moment of the block, `stable_id` is for the events that have one.
    """

    app_token: str
    token: str
    user: User
    vendor: str
    second: int
    stable_id: str
    block: int

    @property
    def raw_event_id(self) -> str:
        """The text that names the event: its token, or its kind."""
        return KIND if self.vendor == "adjust" and self.token == BY_KIND else self.token

    @property
    def alias(self) -> str:
        """The other token of the same event type; the same one where there is no other."""
        return _ALIASES.get(self.token, self.token)


def point(seed: int, number: int, vendors: Sequence[str]) -> Point:
    """Return the point of an event; no two numbers have the same.

    `vendors` are as many as there are events with the same app, token and user in a block.
    """
    users_count = len(users(seed, 0))
    size = len(_APPS) * len(_TOKENS) * users_count * len(vendors)
    block, place = divmod(number, size)
    rest, app = divmod(_order(seed, block, size)[place], len(_APPS))
    rest, token = divmod(rest, len(_TOKENS))
    slot, user = divmod(rest, users_count)
    vendor = vendors[slot]
    second = vendors[:slot].count(vendor)
    # Neither the time nor the token is a part of an event ID with a stable ID.
    stable_id = f"t{seed}-{block}-{second}-{_TOKENS[token] == _SECOND:d}"
    found = users(seed, block)[user]
    if vendor == "branch":  # whose own ID of an event identifies it without the user
        stable_id += f"-{user}"
    return Point(_APPS[app], _TOKENS[token], found, vendor, second, stable_id, block)


@lru_cache(_BLOCKS_REMEMBERED)
def _order(seed: int, block: int, size: int) -> "array[int]":
    """Return the points of a block in the order of their events."""
    points = array("H", range(size))
    Random(f"{seed} {block}").shuffle(points)  # noqa: S311 - repeatable
    return points


@lru_cache(_BLOCKS_REMEMBERED)
def users(seed: int, block: int) -> Sequence[User]:
    """Return the users of a block: they share texts, kinds of identifiers, and words for nothing.

    Of two users that differ in the words for nothing, the next identifier decides.
    """

    def text(name: str) -> str:
        return blake2b(f"{seed} {block} {name}".encode(), digest_size=16).hexdigest()

    def adid(name: str, **ignored: str) -> User:
        kept = {} if ignored.get("user_id") in (_ZEROS, "{user_id}") else ignored
        return User({"adid": text(name), **ignored}, {"adid": text(name)}, kept)

    shared, one, other = text("device"), f"u{text('one')}", f"u{text('other')}"
    numbers = str(UUID(f"{int(text('numbers'), 16) % _DECIMAL:032}"))
    letters = str(UUID(text("letters")))
    named = [{"user_id": name, "adid": shared} for name in (one, other, f"{one}up_")]
    return (
        *(User(columns, columns) for columns in named),
        User({"adid": one}, {"adid": one}),
        adid("second", user_id="null"),
        adid("third", user_id="(null)"),
        adid("fourth", user_id="{user_id}"),
        adid("fifth", user_id="{user_id}"),
        adid("sixth", user_id=_ZEROS),
        User({"gps_adid": numbers}, {"gps_adid": numbers}),
        User({"idfa": numbers}, {"idfa": numbers}),
        User({"gps_adid": letters}, {"gps_adid": letters}),
        User({}, {}),
        User({}, {}),
    )
