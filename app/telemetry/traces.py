"""Whether callbacks are traced: OpenTelemetry's own environment variables say so."""

import os
from collections.abc import Mapping
from importlib import import_module

from app.http.probes import SanicApp
from app.settings import SettingsError

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"


def add(app: SanicApp) -> None:
    """Trace the gateway in the application's context, if that is wanted; raises SettingsError.

    Else nothing is imported for it, and no callback pays.
    """
    if not is_wanted(os.environ):
        return
    try:
        spans = import_module("app.telemetry.tracing")
    except ImportError:
        raise SettingsError(
            "OTEL_TRACES_EXPORTER: traces need the packages of the extra `traces` "
            "(opentelemetry-sdk, opentelemetry-exporter-otlp-proto-http)"
        ) from None
    spans.add(app)


def is_wanted(environ: Mapping[str, str]) -> bool:
    """Whether an environment asks for traces; raises SettingsError where it wants others.

    It asks by naming the exporter, or else an endpoint of it. (The SDK by itself would export by
    default, to this machine.)
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
        raise SettingsError(f"{name}: {environ[name]!r} is not {_PROTOCOL}, the one that is here")
    return True
