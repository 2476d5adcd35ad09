"""Branch: webhooks, a POST of JSON or a GET with macros.

Webhooks: https://help.branch.io/using-branch/docs/webhooks. Macros, which are FreeMarker's:
https://help.branch.io/using-branch/docs/postback-macros-functions.
"""

import re

import msgspec

from adapters import _json, _url
from adapters._names import Names
from app.event import App, Callback, Drop, Event, Retries

# A macro that was not resolved, such as `${(id)!}` or `<#if attributed>1<#else>0</#if>`.
UNFILLED = re.compile(r"\$\{[^{}]{1,80}\}|<#if [^<>]{1,80}>.{0,80}</#if>")
STABLE_ID = ("id",)
# Once, at once, if no answer came within 2 s; never after an error code:
# https://help.branch.io/faq/docs/what-is-the-retry-logic-for-webhooks
RETRIES = Retries.AFTER_TIMEOUT

# Objects whose members are parameters of their own, called as in Branch's macros: `user_data.os`.
_SECTIONS = ("user_data", "event_data", "custom_data", "last_attributed_touch_data")
# Names of a URL, which may leave out the section.
_SHORT = {
    name.rpartition(".")[2]: name
    for name in (
        "user_data.developer_identity", "user_data.aaid", "user_data.idfa", "user_data.idfv",
        "user_data.android_id", "user_data.os", "user_data.geo_country_code",
        "user_data.environment", "event_data.revenue", "event_data.currency",
        "event_data.revenue_in_usd", "event_data.transaction_id",
    )
}  # fmt: skip
_REVENUES = (("event_data.revenue", ("event_data.currency",)),)
_TIMES = ("timestamp", "event_timestamp")
# Branch prints a missing value as the text `null`.
_MISSING = (None, "", "null")


def parse(callback: Callback, app: App) -> Event | Drop:
    """Return the event of a webhook, or the reason to drop it."""
    sent = _flat(_json.parameters(callback, _unwrapped))
    present = _json.present(callback, sent)
    # The app's own name for the event goes before Branch's.
    alias = present.get("customer_event_alias", "")
    names = _ALIASED if alias in app.events or alias in app.ignore else NAMES
    found = _url.parse(callback, app, names, sent=sent, present=present)
    visible = _url.without_omitted(present, app)
    in_usd = "event_data.revenue_in_usd"
    return _url.with_copies(found, _json.revenue(visible, _REVENUES, in_usd), app)


def _unwrapped(members: dict[str, str]) -> dict[str, str]:
    """Return the members of a body, with those of an event within `data` in place of its own."""
    event = _json.members_of(members.get("data", ""))
    is_whole = "name" in event and not event.keys().isdisjoint(_TIMES)
    if not event or ("name" in members and not is_whole):
        return members
    # The ID and time around an event would be those of its delivery.
    around = {n: value for n, value in members.items() if n not in {"data", "id", *_TIMES}}
    return {**around, **event}


def _flat(members: dict[str, str]) -> dict[str, str]:
    """Return the parameters of a body, including those within its sections."""
    flat: dict[str, str] = {}
    for name, value in members.items():
        if name in _SECTIONS and (within := _json.members_of(value, _json.MEMBERS_MAX - len(flat))):
            flat.update((f"{name}.{member}", text) for member, text in within.items())
        elif name not in _SECTIONS or value != "{}":
            flat[_SHORT.get(name, name)] = value
    if "event_timestamp" in flat and flat.get("timestamp") in _MISSING:
        flat["timestamp"] = flat.pop("event_timestamp")  # its name in macros and exports
    return flat


NAMES = Names(
    event=("name",),
    is_kind_too=True,
    time="timestamp",
    users={
        "user_id": "user_data.developer_identity", "adid": "adid", "gps_adid": "user_data.aaid",
        "idfa": "user_data.idfa",
    },
    devices=("user_data.idfv", "user_data.android_id"),
    identifier=_json.identifier,
    # A second delivery may lack the device.
    unique=frozenset(STABLE_ID),
    os_name="user_data.os",
    country="user_data.geo_country_code",
    stable_id=STABLE_ID,
    always_kept=(
        "name", "customer_event_alias", "revenue_float", "currency", "user_data.environment",
        "user_data.os",
    ),
)  # fmt: skip
_ALIASED = msgspec.structs.replace(NAMES, event=("customer_event_alias",))
