"""The identities of simulated events, which share all parts of an event ID but one.

The events of a block are the points of a grid of app, event token, user, vendor and moment. Each
block has its users, its moments and its stable IDs, and so has many pairs of events that differ in
one of these parts alone.
"""

from array import array
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import NamedTuple
from uuid import UUID

from bench.testbed.callbacks import APPS, EVENTS, OWN_STABLE_ID, raw_event_id
from bench.testbed.stable_ids import StableId, no_stable_id, stable_id

_APPS, _TOKENS = tuple(APPS), tuple(EVENTS)
_BLOCKS_REMEMBERED = 512
_ZEROS = str(UUID(int=0))
# The same text in upper case and in lower case.
_DECIMAL = 10**32
# Two tokens of one event type; those of the second line differ in the subtype.
_FIRST, _SECOND = ("g3mz3t", "subn3w"), ("g3mz3u", "subb4ck")
_ALIASES = dict(zip(_FIRST + _SECOND, _SECOND + _FIRST, strict=True))
# Fractions of the same second, in microseconds; most vendors send milliseconds.
_FRACTIONS = {"adjust": (0, 1_000, 1_001)}
_MILLISECONDS = (0, 1_000)


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

    `place` is that among the events of the block with the same app, token, user and vendor, which
    differ in their moment; `text` is shared by their stable IDs.
    """

    app_token: str
    token: str
    user: User
    vendor: str
    place: int
    text: str
    block: int

    @property
    def moment(self) -> timedelta:
        """The time since that of the block; the places differ in seconds or fractions alone."""
        fractions = _FRACTIONS.get(self.vendor, _MILLISECONDS)
        second, fraction = divmod(self.place, len(fractions))
        return timedelta(seconds=second, microseconds=fractions[fraction])

    @property
    def raw_event_id(self) -> str:
        """The text that names the event: its token, or its kind."""
        return raw_event_id(self.token) if self.vendor == "adjust" else self.token

    def stable_id(self, *, is_sent: bool) -> StableId:
        """Return the stable ID, or the parameters that look like one if none is sent."""
        make = stable_id if is_sent or self.vendor == "branch" else no_stable_id
        return make(self.vendor, self.app_token, self.text, self.place)

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
    vendor, found = vendors[slot], users(seed, block)[user]
    # Neither the time nor the token is a part of an event ID with a stable ID.
    text = f"t{seed}-{block}-{_TOKENS[token] in _SECOND:d}"
    # Nor is the user where Branch's own ID identifies the event, or a name that the app lists.
    if vendor == "branch" or (_APPS[app] == OWN_STABLE_ID and not found.columns):
        text += f"-{user}"
    place_of_vendor = vendors[:slot].count(vendor)
    return Point(_APPS[app], _TOKENS[token], found, vendor, place_of_vendor, text, block)


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
