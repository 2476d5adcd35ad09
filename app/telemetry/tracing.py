"""Spans of OpenTelemetry: one for each callback, and one for its batch with the stages of that.

Imported only where traces are wanted. The parts of a running gateway get other functions in place
of some of their own, which do the same and tell of it. What is told: vendor, workspace, outcome,
reason, numbers. Nothing of what a caller has sent.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode, Tracer

from app.errors import GatewayError, UnknownVendor
from app.event import Event, Outcome
from app.http.probes import SanicApp
from app.ingest import RECEIPTS, Request

NAME = "flokit-gateway"
# A collector that is away must not hold up the end of the process.
CLOSE_S = 3.0

_OUTCOMES = {RECEIPTS[o]: o.value for o in (Outcome.WRITTEN, Outcome.DUPLICATE)}
_SERVER_ERROR = 500

Work = Callable[..., Awaitable[Any]]


def add(app: SanicApp) -> None:
    """Trace the gateway in the application's context."""
    exporter = OTLPSpanExporter()
    resource = Resource.create({"service.name": NAME}).merge(OTELResourceDetector().detect())

    async def start(app: SanicApp) -> None:
        # Not earlier: it starts a thread, which the parent of the workers has no use for.
        provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        app.ctx.traces = provider
        _dress(app.ctx.gateway, Spans(provider.get_tracer(NAME)))

    async def stop(app: SanicApp) -> None:
        closing = threading.Thread(target=app.ctx.traces.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_S)

    app.after_server_start(start)
    app.after_server_stop(stop)


def _dress(gateway: Any, spans: "Spans") -> None:
    gateway.ingest.handle = spans.of_callback(gateway.ingest.handle)
    gateway.access.verify = spans.with_workspace(gateway.access.verify)
    gateway.buffer.submit = spans.while_waiting(gateway.buffer.submit)
    gateway.commit = spans.of_batch(gateway.commit)
    gateway.commit_contested = spans.of_batch(gateway.commit_contested)
    gateway.sink.write = spans.of_stage("write", gateway.sink.write)
    gateway.sink.write_contested = spans.of_stage("write", gateway.sink.write_contested)
    for name in ("claim", "settle", "release"):
        setattr(gateway.claims, name, spans.of_stage(name, getattr(gateway.claims, name)))


class Spans:
    """Makes functions that do what another one does, within a span."""

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer
        # The spans of callbacks whose events wait for a batch, by the identity of the event.
        self._waiting: dict[int, Span] = {}

    def of_callback(self, handle: Callable[[Request], Awaitable[bytes]]) -> Work:
        """A span for each callback; what it tells of an error is its reason."""

        async def traced(request: Request) -> bytes:
            with self._tracer.start_as_current_span(
                "callback",
                kind=SpanKind.SERVER,
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    receipt = await handle(request)
                except BaseException as error:
                    _tell_error(span, request.vendor, error)
                    raise
                span.set_attribute("flokit.vendor", request.vendor)
                span.set_attribute("flokit.outcome", _OUTCOMES.get(receipt, "dropped"))
                return receipt

        return traced

    def with_workspace(self, verify: Callable[..., None]) -> Callable[..., None]:
        """Name the workspace in the span of a verified callback."""

        def traced(vendor: str, workspace: str | None, *parts: Any) -> None:
            verify(vendor, workspace, *parts)
            if workspace is not None:
                trace.get_current_span().set_attribute("flokit.workspace", workspace)

        return traced

    def while_waiting(self, submit: Work) -> Work:
        """Remember the callback's span until its event has an outcome."""

        async def traced(event: Event, owner: str, size_bytes: int = 0) -> Any:
            span = trace.get_current_span()
            if not span.is_recording():
                return await submit(event, owner, size_bytes)
            self._waiting[id(event)] = span
            try:
                return await submit(event, owner, size_bytes)
            finally:
                del self._waiting[id(event)]

        return traced

    def of_batch(self, commit: Work) -> Work:
        """A span for each batch with a callback that is sampled.

        It is a child of the first of them, and the others have a link to it.
        """

        async def traced(events: Sequence[Event], *parts: Any) -> Any:
            waiting = [self._waiting[id(event)] for event in events if id(event) in self._waiting]
            if not waiting:
                # The task that commits began with the context of whichever callback came first.
                with trace.use_span(INVALID_SPAN):
                    return await commit(events, *parts)
            with self._tracer.start_as_current_span(
                "batch",
                trace.set_span_in_context(waiting[0]),
                attributes={"flokit.events": len(events)},
            ) as span:
                for callback in waiting[1:]:
                    callback.add_link(span.get_span_context())
                return await commit(events, *parts)

        return traced

    def of_stage(self, name: str, work: Work) -> Work:
        """A span for a stage of a batch."""

        async def traced(events: Sequence[Any] | Event) -> Any:
            if not events or not trace.get_current_span().is_recording():
                return await work(events)
            with self._tracer.start_as_current_span(
                name,
                kind=SpanKind.CLIENT,
                attributes={"flokit.events": 1 if isinstance(events, Event) else len(events)},
                record_exception=False,
                set_status_on_exception=False,
            ) as span:
                try:
                    return await work(events)
                except BaseException as error:
                    span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                    raise

        return traced


def _tell_error(span: Span, vendor: str, error: BaseException) -> None:
    if not isinstance(error, UnknownVendor):  # the text of a stranger
        span.set_attribute("flokit.vendor", vendor)
    if isinstance(error, asyncio.CancelledError):
        span.set_attribute("flokit.outcome", "hung_up")
        return
    is_ours = not isinstance(error, GatewayError) or error.status >= _SERVER_ERROR
    span.set_attribute("flokit.outcome", "failed" if is_ours else "rejected")
    reason = error.reason if isinstance(error, GatewayError) else type(error).__name__
    span.set_attribute("flokit.reason", reason)
    if is_ours:
        span.set_status(Status(StatusCode.ERROR))
