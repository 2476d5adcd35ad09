"""The names and hints of each vendor. A vendor without a row is explained without them."""

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from app.event import UNFILLED

Parameters = Mapping[str, str]
Hint = Callable[[Parameters], Iterator[str]]


class VendorNames(msgspec.Struct, frozen=True, kw_only=True):
    """The parameters of a vendor, each kind by precedence, and its hints.

    `stored_as` are parameters that have another name in `properties`.
    """

    types: Sequence[str] = ()
    activities: Sequence[str] = ()  # names of `types` that are looked up in `activities`
    times: Sequence[str] = ()
    users: Sequence[str] = ()
    stored_as: Mapping[str, str] = {}
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


VENDORS: Mapping[str, VendorNames] = {
    "adjust": VendorNames(
        types=("event_token", "event", "activity_kind"),
        activities=("activity_kind",),
        times=("created_at",),
        users=("user_id", "adid", "gps_adid", "idfa"),
        stored_as={"event": "event_token"},
        hints=(_unfilled, _revenue_in_cents),
    ),
}
NAMELESS = VendorNames()
