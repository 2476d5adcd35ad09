"""An observer is called at each stage of a callback and of a batch. By default it does nothing."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from importlib import import_module

from app.event import Event
from app.settings import SettingsError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


class Stage(Enum):
    """A stage of a batch; the values are the names of its spans."""

    CLAIM = "claim"
    WRITE = "write"
    SETTLE = "settle"
    RELEASE = "release"


class CallbackObserver:
    """Follows one callback. This one does nothing."""

    __slots__ = ()

    def verified(self, vendor: str, workspace_id: str) -> None:
        """Note a verified callback; the workspace is empty where the app token has none."""

    def submitted(self, event: Event) -> None:
        """Note an event that waits for a batch from now on."""

    def ended(self, outcome: str) -> None:
        """Note the outcome in the receipt: written, duplicate or dropped."""

    def failed(self, vendor: str, error: BaseException) -> None:
        """Note the error in place of a receipt; a CancelledError is a caller that hung up."""


class Observer:
    """Follows callbacks and batches. This one does nothing, and costs next to nothing."""

    def start(self) -> None:
        """Begin to observe, in the process and the loop of the server."""

    def callback(self) -> CallbackObserver:
        """Return the observer of a callback that has just arrived."""
        return _UNOBSERVED

    def batch(self, events: Sequence[Event]) -> AbstractContextManager[None]:
        """Return the context in which these events are committed."""
        del events
        return _NO_CONTEXT

    def stage(self, stage: Stage, size: int) -> AbstractContextManager[None]:
        """Return the context of a stage of the current batch, with its number of events."""
        del stage, size
        return _NO_CONTEXT

    async def close(self) -> None:
        """Hand over everything observed."""


_UNOBSERVED = CallbackObserver()
_NO_CONTEXT = nullcontext()
UNOBSERVED = Observer()


def choose_observer(environ: Mapping[str, str] = os.environ) -> Observer:
    """Return the observer that OpenTelemetry's own variables select; raises SettingsError.

    Without them nothing is imported for traces.
    """
    if not traces_wanted(environ):
        return UNOBSERVED
    try:
        tracing = import_module("app.telemetry.tracing")
    except ImportError:
        raise SettingsError(
            "OTEL_TRACES_EXPORTER: traces need the packages of the extra `traces` "
            "(opentelemetry-sdk, opentelemetry-exporter-otlp-proto-http)"
        ) from None
    observer: Observer = tracing.TracingObserver()
    return observer


def traces_wanted(environ: Mapping[str, str]) -> bool:
    """Return whether an environment selects traces; raises SettingsError for an unknown exporter.

    It does by the name of an exporter, or else by an endpoint. (The SDK by itself would export to
    this machine by default.)
    """
    exporter = environ.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    if exporter not in ("", "none", "otlp"):
        raise SettingsError(f"OTEL_TRACES_EXPORTER: {exporter!r} is neither otlp nor none")
    is_disabled = environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    is_named = exporter == "otlp" or any(environ.get(name) for name in _ENDPOINTS)
    if is_disabled or exporter == "none" or not is_named:
        return False
    name = next((name for name in _PROTOCOLS if environ.get(name)), "")
    if name and environ[name] != _PROTOCOL:
        raise SettingsError(f"{name}: {environ[name]!r} is not {_PROTOCOL}, the only one supported")
    return True
