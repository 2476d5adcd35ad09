"""Adjust's callbacks as the bench sends them: realistic, and each as the bytes of a request."""

from collections.abc import Mapping
from datetime import datetime
from random import Random
from urllib.parse import urlencode

import msgspec

SECRET = "s3cr3t-of-the-bench"  # noqa: S105 - opens nothing but the bench's own gateways
EVENTS = {"g3mz3t": "purchase", "bkrfgq": "coins", "g3mfiw": "level_up", "f0ob4r": "sign_up"}
APPS = {"shop4ndroid1": "ws_shop", "shopios00001": "ws_shop", "game4ndroid1": "ws_game"}
WORKSPACES = "".join(
    f'[[workspaces]]\nid = "{workspace}"\n'
    + "".join(
        f'[[workspaces.apps]]\nvendor = "adjust"\napp_token = "{app}"\n'
        f"events = {{ {', '.join(f'{token} = {name!r}' for token, name in EVENTS.items())} }}\n"
        for app, owner in APPS.items()
        if owner == workspace
    )
    for workspace in dict.fromkeys(APPS.values())
)


def parameters(number: int, app: str, token: str, random: Random) -> dict[str, str]:
    """Return what Adjust fills in for an event of user `number`, but for its time."""
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


def written(moment: datetime, random: Random) -> str:
    """Return a time in one of the forms that mean the same."""
    seconds = int(moment.timestamp())
    return random.choice((str(seconds), f"{seconds}000", f"{moment:%Y-%m-%dT%H:%M:%S}Z+0000"))


def request(sent: Mapping[str, str], random: Random) -> bytes:
    """Return the bytes of an HTTP request: nine of ten a GET, the others a form or JSON."""
    form = random.random()
    credentials = {"secret": SECRET, "app_token": sent["app_token"]}
    others = {name: value for name, value in sent.items() if name != "app_token"}
    if form < 0.9:  # noqa: PLR2004 - as Adjust sends them by default
        query = urlencode(credentials | others)
        return f"GET /ingest/adjust?{query} HTTP/1.1\r\nHost: bench\r\n\r\n".encode()
    if form < 0.95:  # noqa: PLR2004 - the half of the rest
        body, media_type = urlencode(others).encode(), "application/x-www-form-urlencoded"
    else:
        body, media_type = msgspec.json.encode(others), "application/json"
    head = (
        f"POST /ingest/adjust?{urlencode(credentials)} HTTP/1.1\r\nHost: bench\r\n"
        f"Content-Type: {media_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
