"""The parameters that an event ID depends on, found by leaving out one after another."""

from msgspec.structs import replace

from adapters import Adapter
from app.commands.explain.vendors import VendorNames
from app.event import App, Callback, Drop, Event

# With more parameters they are not searched.
SEARCHED_MAX = 200


def identity_of(
    adapter: Adapter, callback: Callback, app: App, event: Event, names: VendorNames
) -> list[str]:
    """Return the parameters that the event ID depends on: without one of them it is another."""
    sent = callback.parameters
    if len(sent) > SEARCHED_MAX:
        return []
    found: list[str] = []
    for name in reversed(list(sent)):
        without = {other: value for other, value in sent.items() if other != name}
        query = {other: value for other, value in callback.query.items() if other != name}
        result = adapter.parse(replace(callback, parameters=without, query=query), app)
        if isinstance(result, Drop):
            # Without it there is no event; the time does not count beside a stable ID.
            is_part = name not in names.times or not event.has_stable_id
        else:
            is_part = result.event_id != event.event_id
        if is_part:
            found.append(name)
    return found
