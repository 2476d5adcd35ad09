"""Simulated callbacks of Adjust, and the workspaces of every vendor's callbacks."""

import json
from collections.abc import Mapping
from datetime import datetime
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
}  # fmt: skip
# Adjust sends this event without a token, by its kind.
BY_KIND, KIND = "k1nd", "session"
APPS = {"shop4ndroid1": "ws_shop", "shopios00001": "ws_shop", "game4ndroid1": "ws_game"}
# An app that ignores an event on purpose.
IGNORING, IGNORED = "game4ndroid1", "n0t0urs"


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
    more = f'activities = {{ "{KIND}" = "{EVENTS[BY_KIND]}" }}\n'
    if workspace == APPS[IGNORING]:
        more += f'ignore = ["{IGNORED}"]\n'
    return "".join(workspace_toml(workspace, *apps, vendor=vendor, more=more) for vendor in VENDORS)


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
    """Return a time in one of its equivalent forms."""
    seconds = int(moment.timestamp())
    return random.choice((str(seconds), f"{seconds}000", f"{moment:%Y-%m-%dT%H:%M:%S}Z+0000"))


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
