"""A vendor: the function of its module, and the optional names beside it."""

import re
from collections.abc import Callable, Mapping
from typing import TypeGuard

import msgspec

from app.event import UNFILLED, App, Callback, Drop, Event, Retries, StableName

Parse = Callable[[Callback, App], Event | Drop]


class Vendor(msgspec.Struct, frozen=True, kw_only=True):
    """A vendor: how its callbacks become events, and how it sends them.

    `unfilled` matches a placeholder that the vendor left as it is; none begins with a letter or
    digit. `stable_id` is the default of the apps' `stable_id`. `options` is the type of the apps'
    table `options`, None for a vendor that has none.
    """

    parse: Parse
    unfilled: re.Pattern[str] = UNFILLED
    stable_id: tuple[StableName, ...] = ("transaction_id", "deduplication_id")
    retries: Retries = Retries.AFTER_5XX
    options: type[msgspec.Struct] | None = None


Vendors = Mapping[str, Vendor]


def read_vendor(parse: Parse, names: Mapping[str, object]) -> Vendor:
    """Return the vendor of a module with these names; raises TypeError for a wrong optional one."""
    unfilled = names.get("UNFILLED", UNFILLED)
    if not isinstance(unfilled, re.Pattern) or not isinstance(unfilled.pattern, str):
        raise TypeError("UNFILLED must be a pattern of texts")
    retries = names.get("RETRIES", Retries.AFTER_5XX)
    if not isinstance(retries, Retries):
        raise TypeError("RETRIES must be a member of app.event.Retries")
    options = names.get("Options")
    if options is not None and not _is_options(options):
        raise TypeError("Options must be a frozen msgspec.Struct that forbids unknown fields")
    vendor = Vendor(parse=parse, unfilled=unfilled, retries=retries, options=options)
    if "STABLE_ID" not in names:
        return vendor
    try:
        stable_id = msgspec.convert(names["STABLE_ID"], tuple[StableName, ...])
    except msgspec.ValidationError as error:
        raise TypeError(f"STABLE_ID must be a tuple of names: {error}") from None
    return msgspec.structs.replace(vendor, stable_id=stable_id)


def _is_options(found: object) -> TypeGuard[type[msgspec.Struct]]:
    if not (isinstance(found, type) and issubclass(found, msgspec.Struct)):
        return False
    config = found.__struct_config__
    return config.frozen and config.forbid_unknown_fields
