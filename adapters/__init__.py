"""Vendors. Each is one module in this folder; its name is the last part of the callback URL."""

import importlib
import pkgutil
from typing import Protocol, runtime_checkable

from app.event import App, Callback, Drop, Event
from app.vendor import Vendor, Vendors, read_vendor


@runtime_checkable
class Adapter(Protocol):
    """The interface of a vendor's module. See README.md in this folder."""

    def parse(self, callback: Callback, app: App) -> Event | Drop:
        """Return the event of a callback, or the reason to drop it. Pure and total."""
        ...


def load() -> Vendors:
    """Return every vendor of this folder by its name.

    Modules with a leading underscore hold code that vendors share. Raises TypeError for an adapter
    without `parse`, or with an optional name of a wrong type.
    """
    found: dict[str, Vendor] = {}
    for name in (module.name for module in pkgutil.iter_modules(__path__)):
        if name.startswith("_"):
            continue
        adapter: object = importlib.import_module(f"{__name__}.{name}")
        if not isinstance(adapter, Adapter):
            raise TypeError(f"adapters/{name}.py has no function parse")
        try:
            found[name] = read_vendor(adapter.parse, vars(adapter))
        except TypeError as error:
            raise TypeError(f"adapters/{name}.py: {error}") from None
    return found
