"""The parameters that an event ID depends on, found by leaving out one after another."""

from app.commands.explain.vendors import VendorNames
from app.event import App, Callback, Drop, Event
from app.set_parameters import set_parameters
from app.vendor import Parse

# With more parameters they are not searched.
SEARCHED_MAX = 200


def identity_of(
    parse: Parse, callback: Callback, app: App, event: Event, names: VendorNames
) -> list[str]:
    """Return the parameters that the event ID depends on: without one of them it is another."""
    sent = callback.parameters
    if len(sent) > SEARCHED_MAX:
        return []
    found: list[str] = []
    for name in reversed(list(sent)):
        result = parse(set_parameters(callback, {name: None}), app)
        if isinstance(result, Drop):
            # Without it there is no event; the time does not count beside a stable ID.
            is_part = name not in names.times or not event.has_stable_id
        else:
            is_part = result.event_id != event.event_id
        if is_part:
            found.append(name)
    return found
