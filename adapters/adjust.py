"""Adjust: server-to-server callbacks, as parameters of a URL or of a body.

Placeholders and their meaning: https://help.adjust.com/en/article/callbacks and
https://help.adjust.com/en/article/placeholders.
"""

from adapters import _url
from adapters._names import Names, Values
from app.event import App, Callback, Drop, Event

# Seven kinds of a subscription share one `activity_kind`, and differ in a parameter of their own.
SUBTYPE_NAMES = {"subscription": "subscription_event_type"}
STABLE_ID = ("transaction_id", "deduplication_id")


def parse(callback: Callback, app: App) -> Event | Drop:
    """Return the event of an Adjust callback, or the reason to drop it."""
    return _url.parse(callback, app, NAMES)


def _activities(present: Values) -> tuple[str, ...]:
    """Return the names of the activity, the one with its subtype first."""
    kind = present.get("activity_kind")
    if kind is None:
        return ()
    subtype = present.get(SUBTYPE_NAMES.get(kind, ""))
    return (f"{kind}:{subtype}", kind) if subtype else (kind,)


NAMES = Names(
    # Adjust's own name for the event token is `event`; callback URLs of this gateway use the first.
    event=("event_token", "event"),
    activities=_activities,
    stable_id=STABLE_ID,
)
