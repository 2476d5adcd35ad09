"""Adjust: server-to-server callbacks, as parameters of a URL or of a body.

Placeholders and their meaning: https://help.adjust.com/en/article/callbacks and
https://help.adjust.com/en/article/placeholders.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone

from app.event import EPOCH, Callback, Drop, DropReason, Event, Workspace, digest, event_id

# Adjust's own name for the token is `event`; the documentation of the endpoint says `event_token`.
TOKEN_NAMES = ("event_token", "event")
# Whom an event belongs to; the first that is present.
USER_NAMES = ("user_id", "adid", "gps_adid", "idfa")
KEPT = ("revenue", "revenue_float", "currency", "activity_kind", "environment")
OS_NAMES = {"ios": "ios", "ipados": "ios", "android": "android"}

# Adjust leaves a placeholder that it does not know as it is; a JSON object looks different.
_PLACEHOLDER = re.compile(r"\{[A-Za-z0-9_|. -]{1,80}\}")
_MILLISECOND_DIGITS = 13  # of a moment of this era
_LEAP_SECOND = 60
_MINUTES = 60
_COUNTRY = re.compile(r"[A-Za-z]{2,3}")
_ALL_ZERO = re.compile(r"-*0[0-]*")
_UNIX = re.compile(r"([0-9]{1,13})(?:\.([0-9]+))?")
_ISO = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[T ]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:[.,]([0-9]+))?"
    # The SDKs write a Z before the offset; form decoding turns its + into a space.
    r"(?:Z|Z?([+ -])([0-9]{2}):?([0-9]{2}))?"
)


def app_token(callback: Callback) -> str | None:
    """Return the app token of the URL; a body may not choose the app."""
    return _present(callback.query, "app_token")


def parse(callback: Callback, workspace: Workspace) -> Event | Drop:
    """Return the event of an Adjust callback, or the reason to drop it."""
    sent = callback.parameters
    token = _first_present(sent, TOKEN_NAMES)
    activity = _present(sent, "activity_kind")
    event_type = workspace.events.get(token) if token else workspace.activities.get(activity or "")
    if event_type is None:
        return Drop(_why_unmapped(sent, token))
    created_at = sent.get("created_at", "")
    if _PLACEHOLDER.fullmatch(created_at):
        return Drop(DropReason.UNFILLED_PLACEHOLDER)
    occurred_at = parse_time(created_at)
    if occurred_at is None or not callback.accepts(occurred_at):
        return Drop(DropReason.INVALID_TIMESTAMP)

    identifiers = _identifiers(sent)
    country = _present(sent, "country")
    os_name = _present(sent, "os_name")
    stable_id = _first_present(sent, workspace.stable_id)
    return Event(
        event_id=event_id(
            vendor=workspace.vendor,
            app_token=workspace.app_token,
            user=_user(sent, identifiers),
            event_type=event_type,
            occurred_at=occurred_at,
            raw_event_id=token or activity or "",
            stable_id=stable_id,
        ),
        occurred_at=occurred_at,
        received_at=callback.received_at,
        workspace_id=workspace.id,
        vendor=workspace.vendor,
        app_token=workspace.app_token,
        event_type=event_type,
        **identifiers,
        os_name=OS_NAMES.get(os_name.lower()) if os_name else None,
        country=country.upper() if country and _COUNTRY.fullmatch(country) else None,
        properties=_properties(sent, token, workspace),
        has_stable_id=stable_id is not None,
    )


def parse_time(text: str) -> datetime | None:
    """Read Unix seconds, Unix milliseconds or ISO 8601; None for anything else."""
    try:
        if unix := _UNIX.fullmatch(text):
            digits, fraction = unix[1], unix[2] or ""
            decimals = 3 if len(digits) == _MILLISECOND_DIGITS else 6
            microseconds = int(digits + fraction[:decimals].ljust(decimals, "0"))
            return EPOCH + timedelta(microseconds=microseconds)
        if iso := _ISO.fullmatch(text):
            return _iso_time(iso)
    except (ValueError, OverflowError):
        pass  # not a date of the calendar: as wrong as any other text
    return None


def _iso_time(iso: re.Match[str]) -> datetime:
    year, month, day, hour, minute, second = (int(iso[group]) for group in range(1, 7))
    leap_second = second == _LEAP_SECOND
    zone = UTC
    if iso[8]:
        offset = timedelta(hours=int(iso[9]), minutes=_below_60(int(iso[10])))
        zone = timezone(-offset if iso[8] == "-" else offset)
    microsecond = int((iso[7] or "")[:6].ljust(6, "0"))
    time = datetime(year, month, day, hour, minute, second - leap_second, microsecond, zone)
    return time.astimezone(UTC) + timedelta(seconds=leap_second)


def _below_60(minutes: int) -> int:
    if minutes >= _MINUTES:
        raise ValueError("an offset of 60 minutes or more")
    return minutes


def _present(sent: Mapping[str, str], name: str) -> str | None:
    value = sent.get(name)
    return None if not value or (value[0] == "{" and _PLACEHOLDER.fullmatch(value)) else value


def _first_present(sent: Mapping[str, str], names: Iterable[str]) -> str | None:
    for name in names:
        if value := _present(sent, name):
            return value
    return None


def _why_unmapped(sent: Mapping[str, str], token: str | None) -> DropReason:
    """Tell a callback URL that is set up wrongly (a literal `{…}`) from an unmapped token."""
    if token is None and any(_PLACEHOLDER.fullmatch(sent.get(name, "")) for name in TOKEN_NAMES):
        return DropReason.UNFILLED_PLACEHOLDER
    return DropReason.UNMAPPED_EVENT


def _identifiers(sent: Mapping[str, str]) -> dict[str, str | None]:
    idfa = _present(sent, "idfa")
    gps_adid = _present(sent, "gps_adid")
    return {
        "user_id": _present(sent, "user_id"),
        "adid": _present(sent, "adid"),
        # All zeros: the user has denied tracking, and shares the value with all who did.
        "idfa": idfa.upper() if idfa and not _ALL_ZERO.fullmatch(idfa) else None,
        "gps_adid": gps_adid.lower() if gps_adid and not _ALL_ZERO.fullmatch(gps_adid) else None,
    }


def _user(sent: Mapping[str, str], identifiers: Mapping[str, str | None]) -> tuple[str, str]:
    for name in USER_NAMES:
        if value := identifiers[name]:
            return name, value
    # Nobody is named: whatever else was sent tells devices apart. The time is left out, since it
    # is part of the ID already, and may be written in another way when it is sent again.
    others = sorted(name for name in sent if name != "created_at" and _present(sent, name))
    return "parameters", digest([(name, sent[name]) for name in others]).hex()


def _properties(sent: Mapping[str, str], token: str | None, workspace: Workspace) -> dict[str, str]:
    names = (*KEPT, *workspace.stable_id, *workspace.keep)
    properties = {name: value for name in names if (value := _present(sent, name))}
    if token:
        properties["event_token"] = token
    os_name = _present(sent, "os_name")
    if os_name and os_name.lower() not in ("ios", "android"):
        properties["os_name"] = os_name
    return properties
