"""The path of a callback: access, adapter, buffer, commit (claim, write, settle), receipt."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec
from msgspec.structs import replace

from adapters import Adapter
from app.access import Access, PublicHeaders, sent_app_token, sent_secrets
from app.buffer import WriteBuffer
from app.errors import MalformedBody, TooManyParameters, Unavailable, UnknownVendor
from app.event import (
    OLDEST_OCCURRED_AT,
    App,
    Callback,
    Drop,
    DropReason,
    Event,
    Outcome,
)
from app.parameters import PARAMETERS_MAX, parse_body, parse_form
from app.settings import CLOCK_TOLERANCE_S, ROW_LIFE_MIN_D
from app.telemetry import metrics
from app.workspaces import Workspaces

# A URL of the most parameters takes 12 ms, and its body comes on top of that.
BODY_AT_ONCE_BYTES = 16 * 1024
# Of what is larger so much may wait for its turn; it has left the budget of the connections.
WAITING_MAX_BYTES = 64 * 1024 * 1024


class Receipt(msgspec.Struct, frozen=True):
    """The body of every 200: what became of the events of one request."""

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
    """What the HTTP server hands over: bytes as they came, and the address of the caller.

    `read_body` is asked only when the caller is verified; without it there is no body.
    """

    vendor: str
    query: bytes
    address: str
    headers: Mapping[str, str]
    read_body: Callable[[], Awaitable[bytes]] | None


class Ingest:
    """Handles one callback at a time, many at once."""

    def __init__(
        self,
        *,
        adapters: Mapping[str, Adapter],
        access: Access,
        workspaces: Workspaces,
        buffer: WriteBuffer[Event, Outcome],
        clock_ahead_s: Callable[[], float | None],
        retention_d: int = 0,
    ) -> None:
        self._adapters = adapters
        self._access = access
        self._workspaces = workspaces
        self._buffer = buffer
        self._clock_ahead_s = clock_ahead_s
        self._retention_d = retention_d
        # One thread: of several, each would take its turn of 5 ms before the loop has its own.
        self._large_bodies = ThreadPoolExecutor(1, thread_name_prefix="large-bodies")
        self._waiting_bytes = 0

    @property
    def is_clock_right(self) -> bool:
        """Whether the gateway's clock is known to agree with the database's."""
        ahead_s = self._clock_ahead_s()
        return ahead_s is not None and abs(ahead_s) <= CLOCK_TOLERANCE_S

    async def handle(self, request: Request) -> bytes:
        """Return the receipt of a callback once it is committed or dropped; raises GatewayError."""
        adapter = self._adapters.get(request.vendor)
        if adapter is None:
            raise UnknownVendor(request.vendor)
        app = self._verified_app(request)
        body = await request.read_body() if request.read_body else b""
        workspace = app.workspace_id if app else ""
        try:
            callback = await self._callback(request, body)
            event = self._event(adapter, callback, app)
            if isinstance(event, Drop):
                return _dropped(event, request.vendor, workspace)
            size_bytes = len(request.query) + len(body)
            del body, callback  # up to megabytes, which nobody needs while it waits
            outcome = await self._buffer.submit(event, workspace, size_bytes)
        except Unavailable as error:  # not even tried: nobody else counts it
            metrics.count(metrics.FAILED, request.vendor, workspace, error.reason)
            raise
        return RECEIPTS[outcome]

    def _verified_app(self, request: Request) -> App | None:
        """Return the app that a request is for, None where it is unknown; raises GatewayError.

        Nothing of the request is taken apart before its secret is verified.
        """
        app = self._workspaces.find(request.vendor, sent_app_token(request.query))
        secrets = sent_secrets(request.query, request.headers)
        self._access.verify(
            request.vendor, app.workspace_id if app else None, secrets, request.address
        )
        return app

    async def _callback(self, request: Request, body: bytes) -> Callback:
        query = parse_form(request.query)
        query.pop("secret", None)
        headers = PublicHeaders(request.headers)
        parameters = query
        if body:
            content_type = headers.get("content-type", "")
            if len(body) <= BODY_AT_ONCE_BYTES:
                in_body = parse_body(content_type, body)
            else:  # it may take a fifth of a second: the others do not wait for it
                in_body = await self._parse_large(content_type, body)
            if in_body is None:
                raise MalformedBody("malformed_body")
            in_body.pop("secret", None)
            parameters = in_body | query
            if len(parameters) > PARAMETERS_MAX:
                raise TooManyParameters("too_many_parameters")
        received_at = datetime.now(UTC)
        return Callback(
            query=query,
            parameters=parameters,
            received_at=received_at,
            occurred_from=self._occurred_from(received_at),
            headers=headers,
            body=body,
        )

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
        # Its caller may go away, but the thread would keep the body until it is its turn.
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
            if isinstance(event, Event):
                for name in event.ignored:
                    metrics.IDENTIFIERS_IGNORED.labels(app.vendor, name).inc()
            elif (
                event.reason is DropReason.INVALID_TIMESTAMP
                and not self.is_clock_right
                # Nothing but the time speaks against it.
                and isinstance(adapter.parse(replace(callback, any_time=True), app), Event)
            ):
                raise Unavailable("clock_differs")
        except Unavailable:
            raise
        except Exception:
            metrics.count(metrics.FAILED, app.vendor, app.workspace_id, "adapter_error")
            raise
        return event


def _dropped(drop: Drop, vendor: str, workspace: str) -> bytes:
    """Count a drop, and return its receipt."""
    metrics.count(metrics.DROPPED, vendor, workspace, drop.reason.value)
    if drop.reason is DropReason.IGNORED:
        metrics.count(metrics.IGNORED, vendor, workspace, drop.subject)
    return DROPPED
