"""AppsFlyer: Push API 2.0, a POST of JSON or a GET, and messages in the shape of version 1.0.

Fields: https://support.appsflyer.com/hc/en-us/articles/207034356 and messages that public
receivers quote. AppsFlyer sends no blank fields (version 1.0 does, and null), adds fields without
notice, and quotes most values.
"""

import re

from adapters import _json, _url
from adapters._names import Names, Values
from app.event import App, Callback, Drop, Event, Retries

# AppsFlyer fills in no URL.
UNFILLED = re.compile(r"(?!)")
# An order of the app's own, in `event_value`.
STABLE_ID = ("af_order_id", "af_receipt_id")
# An old page has it that a missed message cannot be sent again; no newer rule was found.
RETRIES = Retries.NEVER

# UTC without a mark; and in the time zone of the app, with its offset.
_TIMES = ("event_time", "event_time_selected_timezone")
# Amounts in whole units, each with the currencies by precedence.
_REVENUES = (
    ("event_revenue", ("event_revenue_currency", "af_currency")),
    ("af_revenue", ("af_currency", "event_revenue_currency")),
    ("revenue_in_selected_currency", ("selected_currency", "currency")),
)


def parse(callback: Callback, app: App) -> Event | Drop:
    """Return the event of a message, or the reason to drop it.

    One action may be reported twice, for the install and for a retargeting. The attribution is no
    part of the event's identity, so that the second report is a duplicate.
    """
    present = _json.parameters(callback)
    if "appsflyer_device_id" in present and "appsflyer_id" not in present:  # version 1.0
        present["appsflyer_id"] = present.pop("appsflyer_device_id")
    if present.get("event_time", "null") == "null" and _TIMES[1] in present:
        present["event_time"] = present[_TIMES[1]]
    within = _json.members_of(present.get("event_value", ""))
    found = _url.parse(callback, app, NAMES, sent=present, present=present, within=within)
    visible = _url.without_omitted(present, app)
    if within and "event_value" in visible:
        visible = {**within, **visible}
    return _url.with_copies(found, _json.revenue(visible, _REVENUES, "event_revenue_usd"), app)


def _kinds(present: Values) -> tuple[str, ...]:
    return (present["event_type"],) if "event_type" in present else ()


NAMES = Names(
    event=("event_name",),
    activities=_kinds,
    is_kind_too=True,
    time="event_time",
    users={
        "user_id": "customer_user_id", "adid": "appsflyer_id", "gps_adid": "advertising_id",
        "idfa": "idfa",
    },
    devices=("idfv", "oaid", "amazon_aid", "android_id"),
    identifier=_json.identifier,
    os_name="platform",
    country="country_code",
    stable_id=STABLE_ID,
    always_kept=(
        "event_name", "event_type", "revenue_float", "currency", "environment", "platform",
    ),
)  # fmt: skip
