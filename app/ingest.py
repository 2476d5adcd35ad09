"""A request becomes a callback, an event or a drop, and a receipt once the event is committed."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Protocol

import msgspec
from msgspec.structs import replace

from adapters import Adapter
from app.access import Access, PublicHeaders, sent_app_token, sent_secrets
from app.errors import (
    MalformedBody,
    TooManyParameters,
    Unavailable,
    UnknownVendor,
    WriteFailed,
)
from app.event import OLDEST_OCCURRED_AT, App, Callback, Drop, DropReason, Event, Outcome
from app.parameters import PARAMETERS_MAX, parse_body, parse_form
from app.settings import ROW_LIFE_MIN_D
from app.telemetry import metrics, outcomes
from app.telemetry.observer import CallbackObserver
from app.workspaces import Workspaces

# A larger body is parsed in a thread: its parameters would hold the loop too long.
BODY_AT_ONCE_BYTES = 16 * 1024
# Of larger bodies so much may wait for the thread; they have left the budget of the connections.
WAITING_MAX_BYTES = 64 * 1024 * 1024


class Receipt(msgspec.Struct, frozen=True):
    """The body of every 200: the outcome of the one callback of a request."""

    received: int = 1
    written: int = 0
    duplicate: int = 0
    dropped: int = 0


DROPPED = msgspec.json.encode(Receipt(dropped=1))
RECEIPTS = {
    Outcome.WRITTEN: msgspec.json.encode(Receipt(written=1)),
    Outcome.DUPLICATE: msgspec.json.encode(Receipt(duplicate=1)),
    Outcome.REFUSED: DROPPED,
}


class Request(msgspec.Struct, frozen=True):
    """A request as the HTTP server received it: raw bytes, and the address of the caller.

    `read_body` is called only once the caller is verified; None is a request without a body.
    """

    vendor: str
    query: bytes
    address: str
    headers: Mapping[str, str]
    read_body: Callable[[], Awaitable[bytes]] | None


class Write(Protocol):
    """Commits an event and returns its outcome, WRITTEN, DUPLICATE, REFUSED or FAILED.

    `size_bytes` is the memory that the event takes meanwhile. Raises Unavailable.
    """

    async def __call__(self, event: Event, size_bytes: int) -> Outcome:
        """Commit the event."""
        ...


def utc_now() -> datetime:
    """Return the time of the wall clock."""
    return datetime.now(UTC)


class Ingest:
    """Handles one callback at a time, many at once."""

    def __init__(
        self,
        *,
        adapters: Mapping[str, Adapter],
        access: Access,
        workspaces: Workspaces,
        write: Write,
        is_clock_right: Callable[[], bool],
        retention_d: int = 0,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._adapters = adapters
        self._access = access
        self._workspaces = workspaces
        self._write = write
        self._is_clock_right = is_clock_right
        self._retention_d = retention_d
        self._now = now
        # One thread: several would take turns of 5 ms with each other before the loop has its own.
        self._large_bodies = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._waiting_bytes = 0

    async def handle(self, request: Request, observed: CallbackObserver) -> bytes:
        """Return the receipt of a callback once it is committed or dropped; raises GatewayError."""
        adapter = self._adapters.get(request.vendor)
        if adapter is None:
            raise UnknownVendor(request.vendor)
        app = self._verified_app(request)
        workspace = app.workspace_id if app else ""
        observed.verified(request.vendor, workspace)
        body = await request.read_body() if request.read_body else b""
        try:
            callback = await self.callback(request, body)
            event = self._event(adapter, callback, app)
            if isinstance(event, Drop):
                outcomes.count_drop(request.vendor, workspace, event)
                observed.ended("dropped")
                return DROPPED
            size_bytes = len(request.query) + len(body)
            del body, callback  # up to megabytes, unused while the event waits
            observed.submitted(event)
            outcome = await self._write(event, size_bytes)
        except Unavailable as error:  # not even tried
            outcomes.count_failure(request.vendor, workspace, error.reason)
            raise
        if outcome is Outcome.FAILED:
            raise WriteFailed("write_failed")
        observed.ended("dropped" if outcome is Outcome.REFUSED else outcome.value)
        return RECEIPTS[outcome]

    def _verified_app(self, request: Request) -> App | None:
        """Return the app of a request, None where it is unknown; raises GatewayError.

        Nothing of the request is parsed before its secret is verified.
        """
        app = self._workspaces.find(request.vendor, sent_app_token(request.query))
        secrets = sent_secrets(request.query, request.headers)
        owner = app.workspace_id if app else None
        self._access.verify(request.vendor, owner, secrets, request.address)
        return app

    async def callback(self, request: Request, body: bytes) -> Callback:
        """Return the decoded callback; raises MalformedBody, TooManyParameters or Unavailable."""
        query = parse_form(request.query)
        query.pop("secret", None)
        headers = PublicHeaders(request.headers)
        received_at = self._now()
        return Callback(
            query=query,
            parameters=await self._with_body(query, headers, body) if body else query,
            received_at=received_at,
            occurred_from=self._occurred_from(received_at),
            headers=headers,
            body=body,
        )

    async def _with_body(
        self, query: dict[str, str], headers: Mapping[str, str], body: bytes
    ) -> dict[str, str]:
        """Return the parameters of URL and body; those of the URL win."""
        content_type = headers.get("content-type", "")
        if len(body) <= BODY_AT_ONCE_BYTES:
            in_body = parse_body(content_type, body)
        else:
            in_body = await self._parse_large(content_type, body)
        if in_body is None:
            raise MalformedBody("malformed_body")
        in_body.pop("secret", None)
        parameters = in_body | query
        if len(parameters) > PARAMETERS_MAX:
            raise TooManyParameters("too_many_parameters")
        return parameters

    async def _parse_large(self, content_type: str, body: bytes) -> dict[str, str] | None:
        if self._waiting_bytes + len(body) > WAITING_MAX_BYTES:
            raise Unavailable("buffer_full")
        self._waiting_bytes += (size_bytes := len(body))

        def leave(_: object) -> None:
            self._waiting_bytes -= size_bytes

        parsed = asyncio.get_running_loop().run_in_executor(
            self._large_bodies, parse_body, content_type, body
        )
        parsed.add_done_callback(leave)
        # Shielded: the thread keeps the body until its turn, even when the caller hangs up.
        return await asyncio.shield(parsed)

    def _occurred_from(self, received_at: datetime) -> datetime:
        if not self._retention_d:
            return OLDEST_OCCURRED_AT
        retained_from = received_at - timedelta(days=self._retention_d)
        return max(OLDEST_OCCURRED_AT, retained_from + timedelta(days=ROW_LIFE_MIN_D))

    def _event(self, adapter: Adapter, callback: Callback, app: App | None) -> Event | Drop:
        """Return the event of a callback, or the reason to drop it; raises Unavailable."""
        if app is None:
            return Drop(DropReason.UNKNOWN_APP)
        try:
            event = adapter.parse(callback, app)
            is_only_late = self._may_be_our_clock(event) and isinstance(
                adapter.parse(replace(callback, any_time=True), app), Event
            )
        except Exception:
            outcomes.count_failure(app.vendor, app.workspace_id, "adapter_error")
            raise
        if is_only_late:
            raise Unavailable("clock_differs")
        if isinstance(event, Event) and event.ignored:
            for name in event.ignored:
                metrics.IDENTIFIERS_IGNORED.labels(app.vendor, name).inc()
        return event

    def _may_be_our_clock(self, event: Event | Drop) -> bool:
        """Return whether a drop may be the fault of a wrong clock of the gateway."""
        return (
            isinstance(event, Drop)
            and event.reason is DropReason.INVALID_TIMESTAMP
            and not self._is_clock_right()
        )
