"""The names and hints of each vendor. A vendor without a row is explained without them."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from app.event import UNFILLED

Parameters = Mapping[str, str]
Hint = Callable[[Parameters], Iterator[str]]


class VendorNames(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a vendor, each kind by precedence, and its hints.

    `stored_as` are parameters that have another name in `properties`, and `columns` those whose
    column has another name.
    """

    types: Sequence[str] = ()
    activities: Sequence[str] = ()  # names of `types` that are looked up in `activities`
    times: Sequence[str] = ()
    users: Sequence[str] = ()
    stored_as: Mapping[str, str] = {}
    columns: Mapping[str, str] = {}
    hints: Sequence[Hint] = ()


# Wrong names in the callback URL, and Adjust's own.
_ADJUST_NAMES = {
    "{event_token}": "{event}",
    "{timestamp}": "{created_at}",
    "{time}": "{created_at}",
    "{os}": "{os_name}",
    "{country_code}": "{country}",
    "{gaid}": "{gps_adid}",
    "{activity}": "{activity_kind}",
}


def _unfilled(parameters: Parameters) -> Iterator[str]:
    unfilled = [(name, value) for name, value in parameters.items() if UNFILLED.fullmatch(value)]
    for name, value in unfilled:
        if value in _ADJUST_NAMES:
            yield f"{name}: {value} is no placeholder of Adjust's, {_ADJUST_NAMES[value]} is"
        elif name == "event_token" and value != "{event}":
            yield f"event_token takes {{event}}, not {value}"
    needed = [value for name, value in unfilled if name in ("event_token", "event", "created_at")]
    if needed:
        yield (
            f"{', '.join(needed)} came unfilled: the callback URL has a placeholder that Adjust "
            "does not fill for this callback, or this is Adjust's own test of the URL (cbtest), "
            "which fills none: then the URL does reach the gateway"
        )


def _revenue_in_cents(parameters: Parameters) -> Iterator[str]:
    revenue, whole = parameters.get("revenue", ""), parameters.get("revenue_float", "")
    if revenue and not UNFILLED.fullmatch(revenue) and (not whole or UNFILLED.fullmatch(whole)):
        yield (
            "revenue without revenue_float: Adjust's {revenue} is in cents; add "
            "&revenue_float={revenue_float} to the callback URL"
        )


def _order_in_value(parameters: Parameters) -> Iterator[str]:
    if parameters.get("event_revenue") and "af_order_id" not in parameters.get("event_value", ""):
        yield (
            "a revenue without af_order_id in event_value: two purchases of one user in the same "
            "millisecond would be one event"
        )


def _no_id(parameters: Parameters) -> Iterator[str]:
    if "name" in parameters and "id" not in parameters:
        yield "id is missing: add &id=${(id)!} to the URL, which identifies the event by itself"


_BRANCH_USERS = {
    "user_data.developer_identity": "user_id", "user_data.aaid": "gps_adid",
    "user_data.idfa": "idfa", "user_data.idfv": "adid", "user_data.android_id": "adid",
    "developer_identity": "user_id", "aaid": "gps_adid", "idfa": "idfa", "idfv": "adid",
    "android_id": "adid",
}  # fmt: skip
VENDORS: Mapping[str, VendorNames] = {
    "adjust": VendorNames(
        types=("event_token", "event", "activity_kind"),
        activities=("activity_kind",),
        times=("created_at",),
        users=("user_id", "adid", "gps_adid", "idfa"),
        stored_as={"event": "event_token"},
        hints=(_unfilled, _revenue_in_cents),
    ),
    "appsflyer": VendorNames(
        types=("event_name", "event_type"),
        activities=("event_type",),
        times=("event_time", "event_time_selected_timezone"),
        users=(
            "customer_user_id", "appsflyer_id", "appsflyer_device_id", "advertising_id", "idfa",
            "idfv", "oaid", "amazon_aid", "android_id",
        ),
        columns={
            "customer_user_id": "user_id", "appsflyer_id": "adid", "appsflyer_device_id": "adid",
            "advertising_id": "gps_adid", "idfv": "adid", "oaid": "adid", "amazon_aid": "adid",
            "android_id": "adid", "platform": "os_name", "country_code": "country",
        },
        hints=(_order_in_value,),
    ),
    "branch": VendorNames(
        types=("customer_event_alias", "name"),
        times=("timestamp", "event_timestamp"),
        users=tuple(_BRANCH_USERS),
        columns={
            **_BRANCH_USERS, "user_data.os": "os_name", "user_data.geo_country_code": "country",
            "os": "os_name", "geo_country_code": "country",
        },
        stored_as={
            "revenue": "event_data.revenue", "currency": "event_data.currency",
            "transaction_id": "event_data.transaction_id",
            "environment": "user_data.environment",
        },
        hints=(_no_id,),
    ),
}  # fmt: skip
NAMELESS = VendorNames()
