"""Adjust: server-to-server callbacks, as parameters of a URL or of a body.

Placeholders and their meaning: https://help.adjust.com/en/article/callbacks and
https://help.adjust.com/en/article/placeholders.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

import msgspec

from app import normalize
from app.event import App, Callback, Drop, DropReason, Event, StableName, digest, event_id

# The identifiers of a user by precedence, each with its canonical spelling.
USER_NAMES: Mapping[str, Callable[[str], str] | None] = {
    "user_id": None, "adid": None, "gps_adid": str.lower, "idfa": str.upper,
}  # fmt: skip
NO_USER = ("nobody", "")
STABLE_ID: tuple[StableName, ...] = ("transaction_id", "deduplication_id")
# Seven kinds of a subscription share one `activity_kind`, and differ in a parameter of their own.
SUBTYPE_NAMES = {"subscription": "subscription_event_type"}
# Kept even if the app's `keep` does not list them.
ALWAYS_KEPT = (
    "revenue", "revenue_float", "currency", "event_token", "activity_kind", "environment",
    "os_name",
)  # fmt: skip
# Columns that an app may leave empty.
_COLUMNS = (*USER_NAMES, "os_name", "country")
# Stored in columns of their own; a parameter without a name is not stored.
_IN_COLUMNS = {"", "app_token", "created_at", *_COLUMNS}

# Adjust sends a placeholder that it does not know unfilled; no JSON object has this form.
_PLACEHOLDER = re.compile(r"\{[A-Za-z0-9_|. -]{1,80}\}")

Values = Mapping[str, str]


def parse(callback: Callback, app: App) -> Event | Drop:
    """Return the event of an Adjust callback, or the reason to drop it.

    Adjust's own name for the event token is `event`; callback URLs of this gateway use
    `event_token`.
    """
    sent = callback.parameters
    present = {
        name: value
        for name, value in sent.items()
        if value and (value[0] != "{" or not _PLACEHOLDER.fullmatch(value))
    }
    token = present.get("event_token") or present.get("event")
    names = (token,) if token else _activities(present)
    for name in names if app.ignore else ():
        if name in app.ignore:
            return Drop(DropReason.IGNORED, name)
    event_type = app.events.get(token) if token else _first(app.activities, names)
    if event_type is None:
        # A literal placeholder means a misconfigured callback URL.
        unfilled = token is None and (sent.get("event_token") or sent.get("event"))
        if unfilled:
            return Drop(DropReason.UNFILLED_PLACEHOLDER, unfilled)
        return Drop(DropReason.UNMAPPED_EVENT, names[0] if names else "")
    created_at = present.get("created_at", "")
    if not created_at and (unfilled := sent.get("created_at")):
        return Drop(DropReason.UNFILLED_PLACEHOLDER, unfilled)
    occurred_at = normalize.time(created_at)
    if occurred_at is None or not callback.accepts(occurred_at):
        return Drop(DropReason.INVALID_TIMESTAMP, created_at)
    event = _event(
        present, app, raw_event_id=names[0], event_type=event_type,
        occurred_at=occurred_at, received_at=callback.received_at,
    )  # fmt: skip
    return _without(event, app.omit) if app.omit else event


def _event(
    present: Values,
    app: App,
    *,
    raw_event_id: str,
    event_type: str,
    occurred_at: datetime,
    received_at: datetime,
) -> Event:
    (user_id, adid, gps_adid, idfa), user, ignored = _identifiers(present)
    entries = STABLE_ID if app.stable_id is None else app.stable_id
    stable_names, stable_id = _stable_id(present, entries, ignored)
    is_own = app.stable_id is not None and stable_id is not None
    os_name = normalize.os_name(present["os_name"]) if "os_name" in present else None
    country = normalize.country(present["country"]) if "country" in present else None
    return Event(
        event_id=event_id(
            vendor=app.vendor, app_token=app.app_token, event_type=event_type,
            user=user or (NO_USER if is_own else _fingerprint(present, stable_names)),
            occurred_at=occurred_at, raw_event_id=raw_event_id, stable_id=stable_id,
        ),
        occurred_at=occurred_at, received_at=received_at, workspace_id=app.workspace_id,
        vendor=app.vendor, app_token=app.app_token, event_type=event_type,
        user_id=user_id, adid=adid, idfa=idfa, gps_adid=gps_adid, os_name=os_name, country=country,
        properties=_properties(present, os_name, country, ignored, app, stable_entries=entries),
        has_stable_id=stable_id is not None, ignored=tuple(ignored),
    )  # fmt: skip


def _first(types: Mapping[str, str], names: Iterable[str]) -> str | None:
    return next((types[name] for name in names if name in types), None)


def _activities(present: Values) -> tuple[str, ...]:
    """Return the names of the activity, the one with its subtype first."""
    kind = present.get("activity_kind")
    if kind is None:
        return ()
    subtype = present.get(SUBTYPE_NAMES.get(kind, ""))
    return (f"{kind}:{subtype}", kind) if subtype else (kind,)


def _identifiers(
    present: Values,
) -> tuple[list[str | None], tuple[str, str] | None, list[str]]:
    """Return the identifiers by precedence, kind and value of the first, and null-like ones."""
    identifiers: list[str | None] = []
    user: tuple[str, str] | None = None
    ignored: list[str] = []
    for name, spell in USER_NAMES.items():
        value = present.get(name)
        if value is not None:
            value = normalize.identifier(value)
            if value is None:
                ignored.append(name)
            else:
                value = spell(value) if spell else value
                user = user or (name, value)
        identifiers.append(value)
    return identifiers, user, ignored


def _stable_id(
    present: Values, entries: Iterable[StableName], ignored: list[str]
) -> tuple[tuple[str, ...], str | tuple[str, ...] | None]:
    """Return the stable ID, the first of the entries that is present, and its parameters' names."""
    found: tuple[tuple[str, ...], str | tuple[str, ...] | None] = ((), None)
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


def _fingerprint(present: Values, stable_names: Iterable[str]) -> tuple[str, str]:
    """Return a hash of all other parameters, which distinguishes devices without an ID."""
    # Without the time: it is part of the event ID already, and a retry may spell it differently.
    others = sorted(present.keys() - {"created_at", *stable_names})
    return "parameters", digest([(name, present[name]) for name in others]).hex()


def _properties(
    present: Values,
    os_name: str | None,
    country: str | None,
    ignored: Iterable[str],
    app: App,
    *,
    stable_entries: Iterable[StableName],
) -> dict[str, str]:
    """Return every parameter that has no column, as it was sent."""
    properties = {name: value for name, value in present.items() if name not in _IN_COLUMNS}
    if "event" in properties and "event_token" not in properties:
        properties["event_token"] = properties.pop("event")
    # The text is kept too if the column does not hold all of it.
    if "os_name" in present and present["os_name"].lower() != os_name:
        properties["os_name"] = present["os_name"]
    if "country" in present and country is None:
        properties["country"] = present["country"]
    for name in ignored:
        if normalize.is_null_word(present[name]):
            properties[name] = present[name]
        else:  # zeros carry no information
            properties.pop(name, None)
    if app.keep is None:
        return properties
    kept = {*ALWAYS_KEPT, *app.keep}
    for entry in stable_entries:
        kept.update((entry,) if isinstance(entry, str) else entry)
    return {name: value for name, value in properties.items() if name in kept}


def _without(event: Event, omitted: Iterable[str]) -> Event:
    """Return the event without the parameters that are never stored; its ID does not change."""
    properties = {name: event.properties[name] for name in event.properties.keys() - set(omitted)}
    columns = dict.fromkeys(name for name in omitted if name in _COLUMNS)
    return msgspec.structs.replace(event, properties=properties, **columns)
