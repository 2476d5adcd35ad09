"""The observer of a gateway: by default none, or spans of OpenTelemetry."""

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
    """Gets each stage of the path when a gateway is put together, and returns an observed one.

    This one returns every stage as it is: without an observer nothing is paid for one.
    """

    def start(self) -> None:
        """Begin to observe, in the process and the loop of the server."""

    async def close(self) -> None:
        """Hand over everything observed."""

    def handle(self, handle: Callable[[R], Awaitable[bytes]]) -> Callable[[R], Awaitable[bytes]]:
        """Return the handler of requests."""
        return handle

    def access(self, access: Verifier) -> Verifier:
        """Return the verification of callers."""
        return access

    def submit(self, submit: Submit) -> Submit:
        """Return the way into the write buffer, with owner and size in bytes."""
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
