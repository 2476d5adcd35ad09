"""Tenjin: callbacks to a URL with macros in double braces, such as `{{advertising_id}}`.

Each callback of an app has a URL of its own, for one event: its name is part of the URL. Macros,
and the platforms: https://docs.tenjin.com. The name and the form of a macro for the time of an
event are not documented there, nor are retries.
"""

import re

from adapters import _url
from adapters._names import Names
from app import normalize
from app.event import App, Callback, Drop, Event, Retries

UNFILLED = re.compile(r"\{\{[A-Za-z0-9_|. -]{1,80}\}\}")
STABLE_ID = ("transaction_id",)
RETRIES = Retries.NEVER

NAMES = Names(
    # `{{platform}}`; Fire OS and the Android of other stores are Android too.
    os_names={**normalize.OS_NAMES, "amazon": "android", "android_other": "android"},
    stable_id=STABLE_ID,
)


def parse(callback: Callback, app: App) -> Event | Drop:
    """Return the event of a Tenjin callback, or the reason to drop it."""
    return _url.parse(callback, app, NAMES)
