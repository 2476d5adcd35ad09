"""Events from named parameters, for vendors that let you write the callback URL yourself.

The names are then ours, and a vendor is its placeholders. Vendors with names of their own say so
in `Names`.
"""

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import msgspec

from adapters._names import NOTHING, USERS, Names, Values
from app import normalize
from app.event import App, Callback, Drop, DropReason, Event, StableName, digest, event_id

StableId = str | tuple[str, ...] | None

# The canonical spelling of those that have one.
_SPELLINGS: Mapping[str, Callable[[str], str]] = {"gps_adid": str.lower, "idfa": str.upper}
_ADID = list(USERS).index("adid")
NO_USER = ("nobody", "")


def parse(
    callback: Callback,
    app: App,
    names: Names,
    *,
    sent: Values | None = None,
    present: Values | None = None,
    within: Values = NOTHING,
) -> Event | Drop:
    """Return the event of a callback with parameters of these names, or the reason to drop it.

    `sent` and `present` are by default those of the callback. `within` are members of a
    parameter's value. They may be a stable ID, and an app may list them under `keep`; they are no
    parameters of their own.
    """
    if present is None:
        present = callback.present
    token = present.get(names.event[0]) or _first(present, names.event)
    found = [token] if token else []
    if not token or names.is_kind_too:
        found += names.activities(present)
    for name in found if app.ignore else ():
        if name in app.ignore:
            return Drop(DropReason.IGNORED, name)
    event_type = app.events.get(token) if token else None
    if event_type is None and (not token or names.is_kind_too):
        event_type = _first(app.activities, found)
    if event_type is None:
        # A literal placeholder means a misconfigured callback URL.
        if not token and (unfilled := _first(_sent(callback, sent), names.event)):
            return Drop(DropReason.UNFILLED_PLACEHOLDER, unfilled)
        return Drop(DropReason.UNMAPPED_EVENT, found[0] if found else "")
    time = present.get(names.time, "")
    if not time and (unfilled := _sent(callback, sent).get(names.time)):
        return Drop(DropReason.UNFILLED_PLACEHOLDER, unfilled)
    occurred_at = normalize.time(time)
    if occurred_at is None or not callback.accepts(occurred_at):
        return Drop(DropReason.INVALID_TIMESTAMP, time)
    return make_event(
        present, app, names, raw_event_id=found[0], event_type=event_type,
        occurred_at=occurred_at, received_at=callback.received_at, within=within,
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
    within: Values = NOTHING,
) -> Event:
    """Return the event of parameters that are present, once its type and time are known."""
    (user_id, adid, gps_adid, idfa), user, ignored = _identifiers(present, names)
    entries = names.stable_id if app.stable_id is None else app.stable_id
    values = {**within, **present} if within else present
    stable_names, stable_id = _stable_id(values, names, entries, ignored)
    is_own = app.stable_id is not None and stable_id is not None
    if names.unique and not names.unique.isdisjoint(stable_names):
        user = NO_USER
    if user is None:
        user = NO_USER if is_own else _fingerprint(present, {names.time, *stable_names})
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
        properties=(
            properties if app.keep is None else _kept(properties, within, names, app.keep, entries)
        ),
        has_stable_id=stable_id is not None, ignored=tuple(ignored),
    )  # fmt: skip
    return _without(event, app, names) if app.omit else event


def without_omitted(values: Values, app: App) -> Values:
    """Return the parameters that the app does not omit.

    A member of an object may be listed by the name of either, by which quarantine takes it out.
    """
    if not app.omit:
        return values
    goes = set(app.omit)
    return {
        name: value
        for name, value in values.items()
        if goes.isdisjoint((name, name.partition(".")[0], name.rpartition(".")[2]))
    }


def with_copies(found: Event | Drop, copies: Values, app: App) -> Event | Drop:
    """Return an event with more properties, which are no part of its identity."""
    if isinstance(found, Drop) or not copies:
        return found
    properties = {**found.properties, **without_omitted(copies, app)}
    return msgspec.structs.replace(found, properties=properties)


def _sent(callback: Callback, sent: Values | None) -> Values:
    """Return all parameters, also those left unfilled: few callbacks need them."""
    return callback.parameters if sent is None else sent


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
            value = names.identifier(value)
            if value is None:
                ignored.append(name)
            else:
                value = _SPELLINGS.get(column, str)(value)
                user = user or (column, value)
        identifiers.append(value)
    for name in names.devices:
        if name not in present:
            continue
        value = names.identifier(present[name])
        if value is None:
            ignored.append(name)
        else:
            identifiers[_ADID] = identifiers[_ADID] or value
            user = user or (name, value)
    return identifiers, user, ignored


def _stable_id(
    values: Values, names: Names, entries: Iterable[StableName], ignored: list[str]
) -> tuple[tuple[str, ...], StableId]:
    """Return the stable ID, the first of the entries that is present, and its parameters' names."""
    found: tuple[tuple[str, ...], StableId] = ((), None)
    for entry in entries:
        parts = (entry,) if isinstance(entry, str) else entry
        if values.keys().isdisjoint(parts):
            continue  # the common case
        sent = [name for name in parts if values.get(name)]
        nothing = [name for name in sent if names.identifier(values[name]) is None]
        ignored += [name for name in nothing if name not in ignored]
        # Later entries are checked too: their null-like values are counted, and not kept.
        if found[1] is None and len(sent) == len(parts) and not nothing:
            ids = tuple(values[name] for name in parts)
            found = parts, ids[0] if len(ids) == 1 else ids
    return found


def _fingerprint(present: Values, left_out: Iterable[str]) -> tuple[str, str]:
    """Return a hash of all other parameters, which distinguishes devices without an ID."""
    # Without the time: it is part of the event ID already, and a retry may spell it differently.
    others = sorted(present.keys() - left_out)
    return "parameters", digest([(name, present[name]) for name in others]).hex()


def _properties(
    present: Values, names: Names, os_name: str | None, country: str | None, ignored: Iterable[str]
) -> dict[str, str]:
    """Return every parameter that has no column, as it was sent."""
    properties = dict(present)
    for name in names.not_kept:
        properties.pop(name, None)
    event = names.event[0]
    for other in names.event[1:]:  # one name for analysts
        if other in properties and event not in properties:
            properties[event] = properties.pop(other)
    # The text is kept too if the column does not hold all of it.
    if names.os_name in present and present[names.os_name].lower() != os_name:
        properties[names.os_name] = present[names.os_name]
    if names.country in present and country is None:
        properties[names.country] = present[names.country]
    for name in ignored:
        if name not in present:
            continue  # within another, which is kept
        if normalize.is_zero(present[name]) and not normalize.is_null_word(present[name]):
            properties.pop(name, None)  # zeros carry no information
        else:
            properties[name] = present[name]
    return properties


def _kept(
    properties: dict[str, str],
    within: Values,
    names: Names,
    keep: Iterable[str],
    stable_entries: Iterable[StableName],
) -> Mapping[str, str]:
    """Return the properties that an app with a list keeps."""
    kept = {*names.always_kept, *keep}
    for entry in stable_entries:
        kept.update((entry,) if isinstance(entry, str) else entry)
    return {
        **{name: value for name, value in within.items() if value and name in kept},
        **{name: value for name, value in properties.items() if name in kept},
    }


def _without(event: Event, app: App, names: Names) -> Event:
    """Return the event without the parameters that are never stored; its ID does not change."""
    stay = without_omitted(names.columns, app)
    columns = names.columns.items()
    empty = {column for name, column in columns if name not in stay or column in app.omit}
    devices = dict.fromkeys(names.devices, "")
    if len(without_omitted(devices, app)) < len(devices):
        empty.add("adid")  # which of them it holds is not known any more
    properties = without_omitted(event.properties, app)
    return msgspec.structs.replace(event, properties=properties, **dict.fromkeys(empty))
