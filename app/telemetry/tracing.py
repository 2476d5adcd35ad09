"""OpenTelemetry spans: one for each callback, and one for its batch with a child for each stage.

Imported only if traces are selected. The attributes are vendor, workspace, outcome, reason and
numbers of events: no data of callers.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import msgspec
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import INVALID_SPAN, Span, SpanKind, Status, StatusCode, Tracer

from app.claims import Claim, Claims
from app.errors import GatewayError, UnknownVendor
from app.event import Event, Outcome
from app.telemetry.observer import Commit, CommitOne, Observer, R, Submit, Verifier
from sinks import Sink

NAME = "flokit-gateway"
# An unreachable collector must not delay the end of the process.
CLOSE_S = 3.0

_SERVER_ERROR = 500
# The span of the callback that is being handled.
_CALLBACK: ContextVar[Span] = ContextVar("callback", default=INVALID_SPAN)


class TracingObserver(Observer):
    """Makes spans, and exports them in a thread of its own."""

    def __init__(self) -> None:
        self._exporter = OTLPSpanExporter()
        resource = Resource.create({"service.name": NAME}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracer = self._provider.get_tracer(NAME)
        # The spans of callbacks that wait for a batch, by the `id` of their event.
        self._waiting: dict[int, Span] = {}

    def start(self) -> None:
        """See `Observer`. Starts a thread, which the parent of the workers does not need."""
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))

    async def close(self) -> None:
        """See `Observer`."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        await asyncio.to_thread(closing.join, CLOSE_S)

    def handle(self, handle: Callable[[R], Awaitable[bytes]]) -> Callable[[R], Awaitable[bytes]]:
        """See `Observer`: a span for each callback, with its outcome or the reason of its error."""

        async def traced(request: R) -> bytes:
            span = self._tracer.start_span("callback", kind=SpanKind.SERVER)
            token = _CALLBACK.set(span)
            try:
                receipt = await handle(request)
                span.set_attribute("flokit.vendor", request.vendor)
                span.set_attribute("flokit.outcome", _outcome_of(receipt))
                return receipt
            except BaseException as error:
                _set_error(span, request.vendor, error)
                raise
            finally:
                _CALLBACK.reset(token)
                span.end()

        return traced

    def access(self, access: Verifier) -> Verifier:
        """See `Observer`: names the workspace in the span of a verified callback."""
        return _TracedAccess(access)

    def submit(self, submit: Submit) -> Submit:
        """See `Observer`: keeps the span of the callback until its event has an outcome."""

        async def traced(event: Event, owner: str, size_bytes: int) -> Outcome:
            span = _CALLBACK.get()
            if span.is_recording():
                self._waiting[id(event)] = span
            try:
                return await submit(event, owner, size_bytes)
            finally:
                self._waiting.pop(id(event), None)

        return traced

    def commit(self, commit: Commit) -> Commit:
        """See `Observer`: a span for each batch with a sampled callback."""

        async def traced(events: Sequence[Event]) -> Sequence[Outcome]:
            with self._batch(events):
                return await commit(events)

        return traced

    def commit_one(self, commit: CommitOne) -> CommitOne:
        """See `Observer`: a batch of one."""

        async def traced(event: Event) -> Outcome:
            with self._batch([event]):
                return await commit(event)

        return traced

    @contextmanager
    def _batch(self, events: Sequence[Event]) -> Iterator[None]:
        """Make a span that is a child of the first callback's, with a link in the other ones."""
        waiting = [self._waiting[id(event)] for event in events if id(event) in self._waiting]
        if not waiting:
            yield
            return
        with self._tracer.start_as_current_span(
            "batch",
            trace.set_span_in_context(waiting[0]),
            attributes={"flokit.events": len(events)},
        ) as span:
            for callback in waiting[1:]:
                callback.add_link(span.get_span_context())
            yield

    def claims(self, claims: Claims) -> Claims:
        """See `Observer`: a span for each claim, settle and release of a batch."""
        return _TracedClaims(claims, self._tracer)

    def sink(self, sink: Sink) -> Sink:
        """See `Observer`: a span for each write of a batch."""
        return _TracedSink(sink, self._tracer)


class _TracedAccess:
    def __init__(self, access: Verifier) -> None:
        self._access = access

    def verify(
        self, vendor: str, workspace: str | None, candidates: Sequence[bytes], address: str
    ) -> None:
        """See `Verifier`."""
        self._access.verify(vendor, workspace, candidates, address)
        if workspace is not None:
            _CALLBACK.get().set_attribute("flokit.workspace", workspace)


class _TracedClaims:
    def __init__(self, claims: Claims, tracer: Tracer) -> None:
        self._claims = claims
        self._tracer = tracer

    @property
    def is_bypassed(self) -> bool:
        """See `Claims`."""
        return self._claims.is_bypassed

    async def claim(self, event_ids: Sequence[bytes]) -> Sequence[Claim]:
        """See `Claims`."""
        with _stage(self._tracer, "claim", len(event_ids)):
            return await self._claims.claim(event_ids)

    async def settle(self, event_ids: Sequence[bytes]) -> None:
        """See `Claims`."""
        with _stage(self._tracer, "settle", len(event_ids)):
            await self._claims.settle(event_ids)

    async def release(self, event_ids: Sequence[bytes]) -> None:
        """See `Claims`."""
        with _stage(self._tracer, "release", len(event_ids)):
            await self._claims.release(event_ids)

    async def close(self) -> None:
        """See `Claims`."""
        await self._claims.close()


class _TracedSink:
    def __init__(self, sink: Sink, tracer: Tracer) -> None:
        self._sink = sink
        self._tracer = tracer

    @property
    def generation(self) -> str | None:
        """See `Sink`."""
        return self._sink.generation

    @property
    def clock_ahead_s(self) -> float | None:
        """See `Sink`."""
        return self._sink.clock_ahead_s

    async def write(self, events: Sequence[Event]) -> Sequence[Outcome]:
        """See `Sink`."""
        with _stage(self._tracer, "write", len(events)):
            return await self._sink.write(events)

    async def write_contested(self, event: Event) -> Outcome:
        """See `Sink`."""
        with _stage(self._tracer, "write", 1):
            return await self._sink.write_contested(event)

    async def ping(self) -> None:
        """See `Sink`."""
        await self._sink.ping()

    async def close(self) -> None:
        """See `Sink`."""
        await self._sink.close()


@contextmanager
def _stage(tracer: Tracer, name: str, events: int) -> Iterator[None]:
    """Make a span for a stage of the current batch, if that is sampled."""
    if not events or not trace.get_current_span().is_recording():
        yield
        return
    with tracer.start_as_current_span(
        name,
        kind=SpanKind.CLIENT,
        attributes={"flokit.events": events},
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        try:
            yield
        except BaseException as error:
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise


def _outcome_of(receipt: bytes) -> str:
    """Return the outcome that a receipt counts."""
    counts = msgspec.json.decode(receipt, type=dict[str, int])
    return next(name for name in ("written", "duplicate", "dropped") if counts[name])


def _set_error(span: Span, vendor: str, error: BaseException) -> None:
    if not isinstance(error, UnknownVendor):  # unverified text
        span.set_attribute("flokit.vendor", vendor)
    if isinstance(error, asyncio.CancelledError):
        span.set_attribute("flokit.outcome", "hung_up")
        return
    is_ours = not isinstance(error, GatewayError) or error.status >= _SERVER_ERROR
    reason = error.reason if isinstance(error, GatewayError) else type(error).__name__
    span.set_attribute("flokit.outcome", "failed" if is_ours else "rejected")
    span.set_attribute("flokit.reason", reason)
    if is_ours:
        span.set_status(Status(StatusCode.ERROR))
