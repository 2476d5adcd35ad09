"""Spans of OpenTelemetry: one for each callback, and one for its batch with a child for each stage.

Imported only where traces are wanted. The attributes are vendor, workspace, outcome, reason and
numbers of events: nothing that a caller has sent.
"""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from app.errors import GatewayError, UnknownVendor
from app.event import Event
from app.telemetry.observer import CallbackObserver, Observer, Stage

NAME = "flokit-gateway"
# A collector that is away must not hold up the end of the process.
CLOSE_S = 3.0

_SERVER_ERROR = 500


class TracingObserver(Observer):
    """Makes spans, and exports them in a thread of its own."""

    def __init__(self) -> None:
        self._exporter = OTLPSpanExporter()
        resource = Resource.create({"service.name": NAME}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer(NAME)
        # The spans of callbacks whose events wait for a batch, by the identity of the event.
        self._waiting: dict[int, Span] = {}

    def start(self) -> None:
        """See `Observer`. Starts a thread, which the parent of the workers has no use for."""
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))

    def callback(self) -> CallbackObserver:
        """See `Observer`."""
        return _CallbackSpan(self._tracer, self._waiting)

    def batch(self, events: Sequence[Event]) -> AbstractContextManager[None]:
        """See `Observer`. A batch without a sampled callback has no span."""
        waiting = [self._waiting[id(event)] for event in events if id(event) in self._waiting]
        return self._batch(waiting, len(events)) if waiting else nullcontext()

    @contextmanager
    def _batch(self, waiting: Sequence[Span], size: int) -> Iterator[None]:
        """The span of a batch: a child of its first callback's, with a link in the other ones."""
        with self._tracer.start_as_current_span(
            "batch", trace.set_span_in_context(waiting[0]), attributes={"flokit.events": size}
        ) as span:
            for callback in waiting[1:]:
                callback.add_link(span.get_span_context())
            yield

    def stage(self, stage: Stage, size: int) -> AbstractContextManager[None]:
        """See `Observer`."""
        is_traced = size > 0 and trace.get_current_span().is_recording()
        return self._stage(stage, size) if is_traced else nullcontext()

    @contextmanager
    def _stage(self, stage: Stage, size: int) -> Iterator[None]:
        with self._tracer.start_as_current_span(
            stage.value,
            kind=SpanKind.CLIENT,
            attributes={"flokit.events": size},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except BaseException as error:
                span.set_status(Status(StatusCode.ERROR, type(error).__name__))
                raise

    async def close(self) -> None:
        """See `Observer`."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_S)


class _CallbackSpan(CallbackObserver):
    """The span of one callback."""

    __slots__ = ("_event", "_span", "_waiting")

    def __init__(self, tracer: Tracer, waiting: dict[int, Span]) -> None:
        self._span = tracer.start_span("callback", kind=SpanKind.SERVER)
        self._waiting = waiting
        self._event: Event | None = None

    def verified(self, vendor: str, workspace_id: str) -> None:
        self._span.set_attribute("flokit.vendor", vendor)
        if workspace_id:
            self._span.set_attribute("flokit.workspace", workspace_id)

    def submitted(self, event: Event) -> None:
        if self._span.is_recording():
            self._event = event  # kept, so that no other event has its identity
            self._waiting[id(event)] = self._span

    def ended(self, outcome: str) -> None:
        self._span.set_attribute("flokit.outcome", outcome)
        self._end()

    def failed(self, vendor: str, error: BaseException) -> None:
        if not isinstance(error, UnknownVendor):  # the text of a stranger
            self._span.set_attribute("flokit.vendor", vendor)
        if isinstance(error, asyncio.CancelledError):
            self._span.set_attribute("flokit.outcome", "hung_up")
        else:
            self._set_error(error)
        self._end()

    def _set_error(self, error: BaseException) -> None:
        is_ours = not isinstance(error, GatewayError) or error.status >= _SERVER_ERROR
        reason = error.reason if isinstance(error, GatewayError) else type(error).__name__
        self._span.set_attribute("flokit.outcome", "failed" if is_ours else "rejected")
        self._span.set_attribute("flokit.reason", reason)
        if is_ours:
            self._span.set_status(Status(StatusCode.ERROR))

    def _end(self) -> None:
        if self._event is not None:
            del self._waiting[id(self._event)]
        self._span.end()
