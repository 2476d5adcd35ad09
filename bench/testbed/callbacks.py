"""Simulated callbacks of Adjust, and the workspaces of every vendor's callbacks."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from random import Random
from urllib.parse import urlencode

import msgspec

from bench.testbed.client import head, post_request

SECRET = "s3cr3t-of-the-bench"  # noqa: S105 - opens nothing but the bench's own gateways
ENDPOINT = "/ingest/adjust"
VENDORS = ("adjust", "appsflyer", "branch")
# Two tokens of one type, a type that ends like another, and a token that is named like a kind.
EVENTS = {
    "g3mz3t": "purchase", "bkrfgq": "coins", "g3mfiw": "level", "f0ob4r": "signup",
    "g3mz3u": "purchase", "upg4de": "up_level", "session": "opened", "k1nd": "app_session",
    "subn3w": "subscribed", "subb4ck": "subscribed", "subs4me": "renewed",
}  # fmt: skip
# Adjust sends these events without a token, by their kind, or by their kind and subtype.
ACTIVITIES = {
    "k1nd": ("session", ""),
    "subn3w": ("subscription", "first_conversion"),
    "subb4ck": ("subscription", "reactivation"),
    "subs4me": ("subscription", "renewal"),
}
SUBTYPE = "subscription_event_type"
# The last subtype has no mapping of its own: its kind has one.
MAPPED_BY_KIND = "subs4me"
APPS = {"shop4ndroid1": "ws_shop", "shopios00001": "ws_shop", "game4ndroid1": "ws_game"}
# An app that ignores an event on purpose.
IGNORING, IGNORED = "game4ndroid1", "n0t0urs"
# An app with stable IDs of its own in Adjust's callbacks: two names that form one ID, or another.
OWN_STABLE_ID, ORDER, RECEIPT = "game4ndroid1", ("order_id", "order_line"), "receipt_id"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# The ends of a time in ISO 8601, with the minutes of their offset; a space was a + before decoding.
_ZONES = (
    ("", 0), ("Z", 0), ("Z+0000", 0), ("+02:00", 120), (" 0200", 120), ("Z+0530", 330),
    ("+05:30", 330), ("-08:00", -480),
)  # fmt: skip


def workspace_toml(
    workspace: str,
    *app_tokens: str,
    vendor: str = "adjust",
    events: Mapping[str, str] = EVENTS,
    more: str = "",
) -> str:
    """Return a workspace of a workspaces file; each app has the same events, and lines `more`."""
    mapping = ", ".join(f'"{token}" = {json.dumps(name)}' for token, name in events.items())
    apps = "".join(
        f'\n[[workspaces.apps]]\nvendor = "{vendor}"\napp_token = "{token}"\n'
        f"events = {{ {mapping} }}\n{more}"
        for token in app_tokens
    )
    return f'[[workspaces]]\nid = "{workspace}"\n{apps}'


def _apps_toml(workspace: str) -> str:
    """Return a workspace whose apps have callbacks of every vendor."""
    apps = [app for app, owner in APPS.items() if owner == workspace]
    names = (f'"{_activity(token)}" = "{EVENTS[token]}"' for token in ACTIVITIES)
    more = f"activities = {{ {', '.join(names)} }}\n"
    if workspace == APPS[IGNORING]:
        more += f'ignore = ["{IGNORED}"]\n'
    own = f"stable_id = {json.dumps([ORDER, RECEIPT])}\n" if OWN_STABLE_ID in apps else ""
    return "".join(
        workspace_toml(workspace, *apps, vendor=vendor, more=more + own * (vendor == "adjust"))
        for vendor in VENDORS
    )


def _activity(token: str) -> str:
    """Return the name by which the workspaces file maps an event without a token."""
    return ACTIVITIES[token][0] if token == MAPPED_BY_KIND else raw_event_id(token)


def raw_event_id(token: str) -> str:
    """Return the text that names an event of Adjust: its token, or its kind with the subtype."""
    kind, subtype = ACTIVITIES.get(token, (token, ""))
    return f"{kind}:{subtype}" if subtype else kind


WORKSPACES = "".join(map(_apps_toml, dict.fromkeys(APPS.values())))


def parameters(
    number: int, random: Random, *, app: str = next(iter(APPS)), token: str = next(iter(EVENTS))
) -> dict[str, str]:
    """Return the values that Adjust fills in for an event of user `number`, without its time."""
    cents = random.randint(1, 100_000)
    return {
        "event_token": token,
        "activity_kind": "event",
        "os_name": "ios" if "ios" in app else "android",
        "country": random.choice(("us", "de", "br", "jp", "in")),
        "adid": f"{random.getrandbits(128):032x}",
        "gps_adid": "{gps_adid}",
        "idfa": "{idfa}",
        "revenue": str(cents),
        "revenue_float": f"{cents / 100:.2f}",
        "currency": random.choice(("USD", "EUR", "JPY")),
        "environment": "production",
        "tracker_name": f"Network{number % 7}::Campaign {number % 90}::Größe & Farbe",
        "user_id": f"u{number}",
        "app_token": app,
    }


def time_text(moment: datetime, random: Random) -> str:
    """Return a time in one of its equivalent forms, each of which has its whole fraction."""
    seconds, fraction = divmod((moment - _EPOCH) // _MICROSECOND, 1_000_000)
    form = random.randrange(4)
    if form == 0 and not fraction % 1_000:
        return f"{seconds}{fraction // 1_000:03}"
    if form <= 1:
        return f"{seconds}.{fraction:06}".rstrip("0") if fraction else str(seconds)
    end, offset_min = random.choice(_ZONES)
    text = (moment + timedelta(minutes=offset_min)).isoformat(random.choice("T "))[:19]
    if fraction:  # further digits are cut
        text += f".{fraction:06}{random.choice(('', '9'))}"
    return text + end


def query(sent: Mapping[str, str], secret: str = SECRET) -> str:
    """Return the query of a callback."""
    return urlencode({"secret": secret, **sent})


def get_request(sent: Mapping[str, str], secret: str = SECRET) -> bytes:
    """Return the bytes of a callback as a GET, Adjust's default."""
    return head("GET", f"{ENDPOINT}?{query(sent, secret)}")


def any_request(sent: Mapping[str, str], random: Random) -> bytes:
    """Return the bytes of a callback: nine of ten are a GET, the others a form or JSON."""
    form = random.random()
    if form < 0.9:  # noqa: PLR2004
        return get_request(sent)
    others = {name: value for name, value in sent.items() if name != "app_token"}
    target = f"{ENDPOINT}?{query({'app_token': sent['app_token']})}"
    if form < 0.95:  # noqa: PLR2004 - half of the rest
        body = urlencode(others).encode()
        return post_request(target, body, "application/x-www-form-urlencoded")
    return post_request(target, msgspec.json.encode(others), "application/json")
