"""The parameters of a vendor by their meaning."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

import msgspec

from app import normalize
from app.event import StableName

Values = Mapping[str, str]

# The identifiers of a user by precedence: columns, and the names of their parameters.
USERS: Mapping[str, str] = MappingProxyType({
    "user_id": "user_id", "adid": "adid", "gps_adid": "gps_adid", "idfa": "idfa",
})  # fmt: skip
NOTHING: Values = MappingProxyType({})


class Names(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The parameters of a vendor: `event` and `users` by precedence, and the columns' names.

    `activities` returns the names of an event without any of `event`, the most specific first.
    They are looked up in the app's `activities`; if `is_kind_too`, so are those of an event that
    the app's `events` do not map. `os_names` has the system of each text in lower case.
    `always_kept` are kept even if the app's `keep` does not list them.

    `devices` are IDs of devices, each a kind of its own. The first that is present identifies a
    user without any of `users`, and is in `adid` if nothing else is; all stay properties.
    `identifier` returns None for a value that is no identifier. A stable ID of `unique`
    identifies an event by itself, without the user.
    """

    event: tuple[str, ...] = ("event_token",)
    activities: Callable[[Values], Sequence[str]] = lambda _: ()
    is_kind_too: bool = False
    time: str = "created_at"
    users: Mapping[str, str] = USERS
    devices: tuple[str, ...] = ()
    identifier: Callable[[str], str | None] = normalize.identifier
    unique: frozenset[str] = frozenset()
    os_name: str = "os_name"
    os_names: Mapping[str, str] = MappingProxyType(normalize.OS_NAMES)
    country: str = "country"
    stable_id: tuple[StableName, ...] = ()
    always_kept: tuple[str, ...] = (
        "revenue", "revenue_float", "currency", "event_token", "activity_kind", "environment",
        "os_name",
    )  # fmt: skip

    @cached_property
    def columns(self) -> Mapping[str, str]:
        """The column of each parameter that has one, and that an app may leave empty."""
        columns = {**self.users, "os_name": self.os_name, "country": self.country}
        return {name: column for column, name in columns.items()}

    @cached_property
    def not_kept(self) -> frozenset[str]:
        """The parameters that are no properties: those of columns, and one without a name."""
        return frozenset({"", "app_token", self.time, *self.columns})
