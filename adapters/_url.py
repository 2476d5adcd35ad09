"""Events from named parameters, for vendors that let you write the callback URL yourself.

The names are then ours, and a vendor is its placeholders. Vendors with names of their own say so
in `Names`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from types import MappingProxyType

import msgspec

from app import normalize
from app.event import App, Callback, Drop, DropReason, Event, StableName, digest, event_id

Values = Mapping[str, str]
StableId = str | tuple[str, ...] | None

# The identifiers of a user by precedence: columns, and the names of their parameters.
USERS: Mapping[str, str] = MappingProxyType({
    "user_id": "user_id", "adid": "adid", "gps_adid": "gps_adid", "idfa": "idfa",
})  # fmt: skip
# The canonical spelling of those that have one.
_SPELLINGS: Mapping[str, Callable[[str], str]] = {"gps_adid": str.lower, "idfa": str.upper}
NO_USER = ("nobody", "")


def _no_activities(_: Values) -> Sequence[str]:
    return ()


class Names(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """The parameters of a vendor: `event` and `users` by precedence, and the columns' names.

    `activities` returns the names of an event without any of `event`, the most specific first.
    They are looked up in the app's `activities`. `os_names` has the system of each text in lower
    case. `always_kept` are kept even if the app's `keep` does not list them.
    """

    event: tuple[str, ...] = ("event_token",)
    activities: Callable[[Values], Sequence[str]] = _no_activities
    time: str = "created_at"
    users: Mapping[str, str] = USERS
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
        columns = {name: column for column, name in self.users.items()}
        return {**columns, self.os_name: "os_name", self.country: "country"}

    @cached_property
    def not_kept(self) -> frozenset[str]:
        """The parameters that are no properties: those of columns, and one without a name."""
        return frozenset({"", "app_token", self.time, *self.columns})


def parse(callback: Callback, app: App, names: Names) -> Event | Drop:
    """Return the event of a callback with parameters of these names, or the reason to drop it."""
    present = callback.present
    token = present.get(names.event[0]) or _first(present, names.event)
    found = (token,) if token else names.activities(present)
    for name in found if app.ignore else ():
        if name in app.ignore:
            return Drop(DropReason.IGNORED, name)
    event_type = app.events.get(token) if token else _first(app.activities, found)
    if event_type is None:
        # A literal placeholder means a misconfigured callback URL.
        if not token and (unfilled := _first(callback.parameters, names.event)):
            return Drop(DropReason.UNFILLED_PLACEHOLDER, unfilled)
        return Drop(DropReason.UNMAPPED_EVENT, found[0] if found else "")
    time = present.get(names.time, "")
    if not time and (unfilled := callback.parameters.get(names.time)):
        return Drop(DropReason.UNFILLED_PLACEHOLDER, unfilled)
    occurred_at = normalize.time(time)
    if occurred_at is None or not callback.accepts(occurred_at):
        return Drop(DropReason.INVALID_TIMESTAMP, time)
    return make_event(
        present, app, names, raw_event_id=found[0], event_type=event_type,
        occurred_at=occurred_at, received_at=callback.received_at,
    )  # fmt: skip


def make_event(
    present: Values,
    app: App,
    names: Names,
    *,
    raw_event_id: str,
    event_type: str,
    occurred_at: datetime,
    received_at: datetime,
) -> Event:
    """Return the event of parameters that are present, once its type and time are known."""
    (user_id, adid, gps_adid, idfa), user, ignored = _identifiers(present, names)
    entries = names.stable_id if app.stable_id is None else app.stable_id
    stable_names, stable_id = _stable_id(present, entries, ignored)
    is_own = app.stable_id is not None and stable_id is not None
    user = user or (NO_USER if is_own else _fingerprint(present, {names.time, *stable_names}))
    os_name = names.os_names.get(present.get(names.os_name, "").lower())
    country = normalize.country(present[names.country]) if names.country in present else None
    properties = _properties(present, names, os_name, country, ignored)
    event = Event(
        event_id=event_id(
            vendor=app.vendor, app_token=app.app_token, event_type=event_type,
            user=user, occurred_at=occurred_at, raw_event_id=raw_event_id, stable_id=stable_id,
        ),
        occurred_at=occurred_at, received_at=received_at, workspace_id=app.workspace_id,
        vendor=app.vendor, app_token=app.app_token, event_type=event_type,
        user_id=user_id, adid=adid, idfa=idfa, gps_adid=gps_adid, os_name=os_name, country=country,
        properties=properties if app.keep is None else _kept(properties, names, app.keep, entries),
        has_stable_id=stable_id is not None, ignored=tuple(ignored),
    )  # fmt: skip
    return _without(event, app.omit, names) if app.omit else event


def _first(values: Values, names: Iterable[str]) -> str | None:
    """Return the first value that is neither missing nor empty."""
    for name in names:
        if value := values.get(name):
            return value
    return None


def _identifiers(
    present: Values, names: Names
) -> tuple[list[str | None], tuple[str, str] | None, list[str]]:
    """Return the identifiers by precedence, kind and value of the first, and null-like ones."""
    identifiers: list[str | None] = []
    user: tuple[str, str] | None = None
    ignored: list[str] = []
    for column, name in names.users.items():
        value = present.get(name)
        if value is not None:
            value = normalize.identifier(value)
            if value is None:
                ignored.append(name)
            else:
                spell = _SPELLINGS.get(column)
                value = spell(value) if spell else value
                user = user or (column, value)
        identifiers.append(value)
    return identifiers, user, ignored


def _stable_id(
    present: Values, entries: Iterable[StableName], ignored: list[str]
) -> tuple[tuple[str, ...], StableId]:
    """Return the stable ID, the first of the entries that is present, and its parameters' names."""
    found: tuple[tuple[str, ...], StableId] = ((), None)
    for entry in entries:
        names = (entry,) if isinstance(entry, str) else entry
        if present.keys().isdisjoint(names):
            continue  # the common case
        sent = [name for name in names if name in present]
        nothing = [name for name in sent if normalize.identifier(present[name]) is None]
        ignored += [name for name in nothing if name not in ignored]
        # Later entries are checked too: their null-like values are counted, and not kept.
        if found[1] is None and len(sent) == len(names) and not nothing:
            values = tuple(present[name] for name in names)
            found = names, values[0] if len(values) == 1 else values
    return found


def _fingerprint(present: Values, left_out: Iterable[str]) -> tuple[str, str]:
    """Return a hash of all other parameters, which distinguishes devices without an ID."""
    # Without the time: it is part of the event ID already, and a retry may spell it differently.
    others = sorted(present.keys() - left_out)
    return "parameters", digest([(name, present[name]) for name in others]).hex()


def _properties(
    present: Values,
    names: Names,
    os_name: str | None,
    country: str | None,
    ignored: Iterable[str],
) -> dict[str, str]:
    """Return every parameter that has no column, as it was sent."""
    not_kept = names.not_kept
    properties = {name: value for name, value in present.items() if name not in not_kept}
    event = names.event[0]
    if event not in properties:  # one name for analysts
        for other in names.event:
            if other in properties:
                properties[event] = properties.pop(other)
                break
    # The text is kept too if the column does not hold all of it.
    if names.os_name in present and present[names.os_name].lower() != os_name:
        properties[names.os_name] = present[names.os_name]
    if names.country in present and country is None:
        properties[names.country] = present[names.country]
    for name in ignored:
        if normalize.is_null_word(present[name]):
            properties[name] = present[name]
        else:  # zeros carry no information
            properties.pop(name, None)
    return properties


def _kept(
    properties: Values, names: Names, keep: Iterable[str], stable_entries: Iterable[StableName]
) -> dict[str, str]:
    """Return the properties that the app keeps."""
    kept = {*names.always_kept, *keep}
    for entry in stable_entries:
        kept.update((entry,) if isinstance(entry, str) else entry)
    return {name: value for name, value in properties.items() if name in kept}


def _without(event: Event, omitted: Iterable[str], names: Names) -> Event:
    """Return the event without the parameters that are never stored; its ID does not change."""
    properties = {name: event.properties[name] for name in event.properties.keys() - set(omitted)}
    columns = {*names.columns.values()}
    empty = {names.columns.get(name, name) for name in omitted} & columns
    return msgspec.structs.replace(event, properties=properties, **dict.fromkeys(empty))
