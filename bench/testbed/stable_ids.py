"""The stable IDs of simulated events, by the default names and by those that an app lists."""

from collections.abc import Mapping
from typing import NamedTuple

from bench.testbed.callbacks import ORDER, OWN_STABLE_ID, RECEIPT

_FIRST, _SECOND = "transaction_id", "deduplication_id"
_UNFILLED = f"{{{ORDER[1]}}}"
_FORMS = 3
# The parameters of Adjust that may hold a stable ID.
NAMES = frozenset({_FIRST, _SECOND, *ORDER, RECEIPT})


class StableId(NamedTuple):
    """The parameters that form a stable ID, if there are any, and those beside it.

    `others` do not count: by the precedence, because the app has names of its own, or because one
    of several names is missing. With `is_own` the names are the app's, and no user is needed.
    """

    names: Mapping[str, str]
    others: Mapping[str, str]
    is_own: bool = False

    @property
    def value(self) -> str | tuple[str, ...]:
        """The stable ID itself; empty without one."""
        texts = tuple(self.names.values())
        return texts if len(texts) > 1 else "".join(texts)


def stable_id(vendor: str, app_token: str, text: str, place: int) -> StableId:
    """Return the stable ID of an event; of another `place` it differs, the `text` is shared.

    The parameters are those of Adjust; of Branch it is its own ID.
    """
    own = f"{text}-{place}"
    if vendor != "adjust":
        return StableId({"id" if vendor == "branch" else _FIRST: own}, {})
    turn, form = divmod(place, _FORMS)
    if app_token == OWN_STABLE_ID:
        if form == 0:
            # Two lines of each order: `-` and `11`, `-1` and `1` are equal if they are joined.
            order, line = f"{text}-{'1' * (turn // 2)}", "1" * (turn % 2 + 1)
            return StableId({ORDER[0]: order, ORDER[1]: line}, {RECEIPT: text}, is_own=True)
        others = {ORDER[0]: text, ORDER[1]: _UNFILLED} if form == 1 else {_FIRST: text}
        return StableId({RECEIPT: own}, others, is_own=True)
    if form == 0:
        return StableId({_FIRST: own}, {})
    return StableId({_SECOND: own}, {}) if form == 1 else StableId({_FIRST: own}, {_SECOND: text})


def no_stable_id(vendor: str, app_token: str, text: str, place: int) -> StableId:
    """Return the parameters of an event without a stable ID: some look like one."""
    if vendor != "adjust" or app_token != OWN_STABLE_ID or place % 2:
        return StableId({}, {})
    return StableId({}, {ORDER[0]: text, _SECOND: text})
