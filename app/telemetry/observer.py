"""The observer of a gateway: none by default, or OpenTelemetry spans."""

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from typing import Protocol, TypeVar

from app.claims import Claims
from app.event import Event, Outcome
from app.settings import SettingsError
from sinks import Sink

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


Commit = Callable[[Sequence[Event]], Awaitable[Sequence[Outcome]]]
CommitOne = Callable[[Event], Awaitable[Outcome]]
Submit = Callable[[Event, str, int], Awaitable[Outcome]]


class Verifier(Protocol):
    """Access, as far as the path uses it."""

    def verify(
        self, vendor: str, workspace: str | None, candidates: Sequence[bytes], address: str
    ) -> None:
        """Raise NotConfigured or Unverified, unless the caller may send for the workspace."""
        ...


class HasVendor(Protocol):
    """A request, as far as an observer knows it."""

    @property
    def vendor(self) -> str:
        """The vendor in the path."""
        ...


R = TypeVar("R", bound=HasVendor)


class Observer:
    """Wraps each stage of the path when a gateway is put together.

    This one returns every stage unchanged, so that tracing costs nothing when it is off.
    """

    def start(self) -> None:
        """Begin to observe, in the process and the event loop of the server."""

    async def close(self) -> None:
        """Export the remaining observations."""

    def handle(self, handle: Callable[[R], Awaitable[bytes]]) -> Callable[[R], Awaitable[bytes]]:
        """Return the handler of requests."""
        return handle

    def access(self, access: Verifier) -> Verifier:
        """Return the verification of callers."""
        return access

    def submit(self, submit: Submit) -> Submit:
        """Return the submission to the write buffer: event, owner and size in bytes."""
        return submit

    def commit(self, commit: Commit) -> Commit:
        """Return the commit of a batch."""
        return commit

    def commit_one(self, commit: CommitOne) -> CommitOne:
        """Return the commit of a contested event."""
        return commit

    def claims(self, claims: Claims) -> Claims:
        """Return the claim store."""
        return claims

    def sink(self, sink: Sink) -> Sink:
        """Return the sink."""
        return sink


UNOBSERVED = Observer()


def choose_observer(environ: Mapping[str, str] = os.environ) -> Observer:
    """Return the observer that OpenTelemetry's own variables select; raises SettingsError.

    The tracing libraries are imported only if it does.
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

    Traces are selected by the name of an exporter, or else by an endpoint. (The SDK's own default
    is to export to localhost.)
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
