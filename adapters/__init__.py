"""Vendors. Each is one module in this folder; its name is the last part of the callback URL."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Protocol, cast

from app.event import App, Callback, Drop, Event


class Adapter(Protocol):
    """What a vendor's module offers. See README.md in this folder."""

    def parse(self, callback: Callback, app: App) -> Event | Drop:
        """Return the event that the callback tells of, or why there is none. Pure and total."""
        ...


def load() -> Mapping[str, Adapter]:
    """Return every adapter of this folder by its vendor's name.

    A module whose name begins with `_` is none: vendors may share one.
    """
    return {
        module.name: cast("Adapter", importlib.import_module(f"{__name__}.{module.name}"))
        for module in pkgutil.iter_modules(__path__)
        if not module.name.startswith("_")
    }
